"""Tiny models that are not dense, and runs of theirs, for the tests of their trainers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import VOCABULARY, make_pairs, word_tokenizer
from datasets import Dataset
from recorded import Recording, weights_hash
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from gcbs_st.embeddings.store import NEVER

B = 8
GROUPS = 10
QUIET: dict[str, Any] = {
    "per_device_train_batch_size": B, "num_train_epochs": 1, "report_to": "none", "disable_tqdm": True,
    "use_cpu": True, "save_strategy": "no", "logging_steps": 1,
}  # fmt: skip


def fast_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the tests, for transformers."""
    return PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )


def save_bert(folder: Path, kind: Any, dropout: float, seed: int = 0) -> str:
    """Saves a random BERT of one layer with its tokenizer; its path."""
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind(config).save_pretrained(folder)
    fast_tokenizer().save_pretrained(folder)
    return str(folder)


def make_splade(folder: Path, dropout: float = 0.0) -> SparseEncoder:
    """A random SPLADE model: what the language model expects in the places of all words."""
    return load_splade(save_bert(folder, BertForMaskedLM, dropout))


def load_splade(bert: str) -> SparseEncoder:
    """The same, of a saved BERT."""
    transformer = Transformer(bert, transformer_task="fill-mask")
    return SparseEncoder(modules=[transformer, SpladePooling()], device="cpu")


def make_word_counter() -> SparseEncoder:
    """A model whose embedding says which words a text holds, each with a weight of its own."""
    weights = 1 + torch.from_numpy(np.random.default_rng(3).random(len(VOCABULARY)).astype(np.float32))
    return SparseEncoder(modules=[SparseStaticEmbedding(fast_tokenizer(), weight=weights)], device="cpu")


def make_colbert(folder: Path, dropout: float = 0.0) -> Any:
    """A random late-interaction model that leaves one word of documents out of the score."""
    return load_colbert(save_bert(folder, BertModel, dropout))


def load_colbert(bert: str) -> Any:
    """The same, of a saved BERT."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    return MultiVectorEncoder(modules=[Transformer(bert), MultiVectorMask(skiplist_words=["w59"])], device="cpu")


def grouped_rows() -> Dataset:
    """GROUPS groups of B rows, shuffled; the rows of group g say `wg` often, and differ in the other words."""
    rows = [
        (f"w{g} w{g + 30} w{20 + g} w{40 + k}", f"w{g} w{g + 30} w{20 + g} w{50 + k}")
        for g in range(GROUPS)
        for k in range(B)
    ]
    anchors, positives = zip(*[rows[i] for i in np.random.default_rng(5).permutation(len(rows))], strict=True)
    return Dataset.from_dict({"anchor": anchors, "positive": positives})


def share_of_one_group(trained: list[tuple[int, list[tuple[str, ...]]]]) -> float:
    """The mean share of a batch that the group has which has most of it."""
    counts = [Counter(texts[0].split()[0] for texts in batch) for _, batch in trained]
    return float(np.mean([max(count.values()) / sum(count.values()) for count in counts]))


class Watching(Recording):
    """Keeps what was trained on, what was planned with and which order came of it, and what was harvested."""

    def plan_batches(self, anchors, positives, batch_size, rng):
        order = super().plan_batches(anchors, positives, batch_size, rng)
        self.plans = [*getattr(self, "plans", []), (np.array(anchors), np.array(positives), np.array(order))]
        return order

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.args.embedding_source == "harvest":
            self.source.sync()
            store = self.source.harvested.stores[""]
            self.seen = np.flatnonzero(store.steps() != NEVER)
            self.harvested = [np.array(one) for one in store.read(self.seen)]


def batches_of_ids(trainer: Any, rows: Dataset) -> list[list[int]]:
    """The row ids of every batch that was trained on, in order."""
    ids = {tuple(row.values()): i for i, row in enumerate(rows)}
    assert len(rows) == len(ids), "the test's rows have to differ"
    return [[ids[texts] for texts in batch] for _, batch in trainer.trained]


def blocks(order: np.ndarray) -> set[frozenset[int]]:
    """The batches of an order, as sets of rows."""
    return {frozenset(block) for block in order.reshape(-1, B).tolist()}


def whole_and_resumed(
    folder: Path, source: str, train: Callable[..., Any], make_model: Callable[..., Any]
) -> tuple[list[Any], list[Any]]:
    """Batches from a step on and weights at the end, of a run that was not stopped and of those resumed from two steps.

    `train` is given a folder, a model and rows, perhaps a checkpoint, and arguments; `make_model` a folder and dropout.
    """
    rows = make_pairs(64)
    given = {
        "embedding_source": source, "replan_steps": 3, "num_train_epochs": 2, "learning_rate": 1e-3,
        "save_strategy": "steps", "save_steps": 1, "planner": "gcbs",
    }  # fmt: skip
    whole = train(folder / "run", make_model(folder / "model", dropout=0.2), rows, **given)
    assert len(whole.trained) == 16
    steps, runs = (3, 11), []
    for step in steps:
        model = make_model(folder / f"model_{step}", dropout=0.2)
        checkpoint = str(folder / "run" / f"checkpoint-{step}")
        resumed = train(folder / f"other_{step}", model, rows, resume=checkpoint, **given)
        runs.append((resumed.trained, weights_hash(resumed.model)))
    return [(whole.trained[step:], weights_hash(whole.model)) for step in steps], runs
