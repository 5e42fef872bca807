"""Small models, rows and losses that the cases are made of; nothing here needs a network."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import VOCABULARY, make_bert, make_pairs, make_static_model, word_tokenizer
from datasets import Dataset, DatasetDict
from other_models import make_colbert, make_splade
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding

ROWS = 93  # 11 batches of 8, and 5 rows that fill none; of two processes 5 steps, and a batch that nobody draws
FEWER = 46  # 5 batches, 2 steps of two processes


# ---------------------------------------------------------------- models


def save_models(folder: Path) -> None:
    """Saves small random models with dropout: BERT as `model`, `splade`, and `colbert` where the host has it.

    By one process: of several only the first would write.
    """
    make_bert(folder)
    make_splade(folder / "splade_bert", dropout=0.1).save(str(folder / "splade"))
    if find_spec("sentence_transformers.multi_vector_encoder") is not None:
        make_colbert(folder / "colbert_bert", dropout=0.1).save(str(folder / "colbert"))


def static(place: Any = None) -> SentenceTransformer:
    """Word vectors, without dropout; trains in milliseconds."""
    return make_static_model()


def bert(place: Any) -> SentenceTransformer:
    """Two random layers with dropout."""
    return SentenceTransformer(str(place.models / "model"), device="cpu")


def router(place: Any = None) -> SentenceTransformer:
    """Queries and documents by word vectors of their own."""
    rng = np.random.default_rng(1)
    routes = [
        StaticEmbedding(word_tokenizer(), embedding_weights=rng.normal(size=(len(VOCABULARY), 16)).astype(np.float32))
        for _ in range(2)
    ]
    return SentenceTransformer(modules=[Router.for_query_document([routes[0]], [routes[1]])], device="cpu")


# ---------------------------------------------------------------- rows


def pairs(rows: int = ROWS, seed: int = 0) -> Dataset:
    """Anchor and positive."""
    return make_pairs(rows, seed)


def negatives(count: int) -> Dataset:
    """Anchor, positive, and so many negatives: `negative`, or `negative_1` and so on."""
    rows = make_pairs(ROWS)
    for index in range(count):
        name = "negative" if count == 1 else f"negative_{index + 1}"
        rows = rows.add_column(name, make_pairs(ROWS, seed=20 + index)["anchor"])
    return rows


def triplets() -> Dataset:
    """Anchor, positive, negative."""
    return negatives(1)


def scored(rows: int = ROWS, seed: int = 0) -> Dataset:
    """Two texts and a score."""
    return make_pairs(rows, seed).add_column("score", np.linspace(0, 1, rows).tolist())


def labelled() -> Dataset:
    """Two texts and whether they mean the same."""
    return make_pairs(ROWS).add_column("label", [i % 2 for i in range(ROWS)])


def two_sets() -> DatasetDict:
    """Pairs of two kinds."""
    return DatasetDict({"first": pairs(), "second": pairs(FEWER, seed=5)})


def unlike_sets() -> DatasetDict:
    """Pairs, and scored pairs."""
    return DatasetDict({"first": pairs(), "second": scored(FEWER, seed=5)})


def twice() -> Dataset:
    """Unsupervised: each sentence is its own positive."""
    sentences = pairs()["anchor"]
    return Dataset.from_dict({"anchor": sentences, "positive": sentences})


def score_first() -> Dataset:
    """The score before the texts."""
    return scored().select_columns(["score", "anchor", "positive"])


def transformed() -> Dataset:
    """Texts that only a transform makes, of rows in another order than in memory."""
    rows = pairs().shuffle(seed=3)
    return rows.with_transform(lambda batch: {name: [f"w1 {text}" for text in texts] for name, texts in batch.items()})


GROUPS_OF_ROWS = [row % 20 for row in range(ROWS)]


def grouped() -> Dataset:
    """Pairs in groups of four or five, which a random batch of eight mixes more often than not."""
    return pairs().add_column("photo", GROUPS_OF_ROWS)


REPEATED = [f"w{row % 40} w{row % 40 + 1}" for row in range(ROWS)]


def repeated() -> Dataset:
    """Each positive stands in two or three rows."""
    return Dataset.from_dict({"anchor": pairs()["anchor"], "positive": REPEATED})


# ---------------------------------------------------------------- a collator and a loss of the user's own


@dataclass
class OwnCollator(SentenceTransformerDataCollator):
    """The host's collator, written over by a user: counts what it collates."""

    collated: int = 0

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        self.collated += len(features)
        return super().__call__(features)


class OwnLoss(torch.nn.Module):
    """A module that a user wrote, with a parameter-free log-softmax over the batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sentence_features: Any, labels: Any) -> torch.Tensor:
        anchors, positives = (self.model(features)["sentence_embedding"] for features in sentence_features)
        scores = torch.nn.functional.normalize(anchors) @ torch.nn.functional.normalize(positives).T
        return -torch.log_softmax(10 * scores, dim=1).diagonal().mean()
