"""A cheap view of texts before a model has embedded any: averages of its own input word vectors, no transformer pass.

Arora, Liang, Ma, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings", ICLR 2017: each word counts
a / (a + its frequency), and what all texts have in common is taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import nn

from gcbs_st.embeddings import encode_rows, evaluation_mode
from gcbs_st.rows.columns import TextColumn, read_columns

# a of the paper.
_SMOOTHING = 1e-3
_TEXTS_AT_ONCE = 2048


def average_words(
    model: SentenceTransformer, dataset: Dataset, rows: np.ndarray, columns: Sequence[TextColumn]
) -> list[np.ndarray]:
    """Returns one (m, d) float32 array of unit rows a column.

    Cost: tokenization and a mean of word vectors, with memory for all token ids of the rows. A model that is
    nothing but word vectors is encoded as it is.

    Args:
        model: the model that is being trained, unwrapped.
        dataset: the training rows.
        rows: (m,) row ids.
        columns: what to embed.

    Returns:
        The arrays, in the order of `columns`; d is the width of the word vectors.

    Raises:
        ValueError: a model without word vectors.
    """
    tables = {task: _find_table(model, task) for task in {column.task for column in columns}}
    if None in tables.values():
        return encode_rows(model, dataset, rows, columns, batch_size=_TEXTS_AT_ONCE)
    texts = read_columns(dataset, rows, [column.name for column in columns])
    with evaluation_mode(model), torch.no_grad():
        tokens = [_tokenize(model, mine, column) for mine, column in zip(texts, columns, strict=True)]
        size = max(int(ids.max(initial=0)) for ids, _ in tokens) + 1
        counts = np.sum([np.bincount(ids, minlength=size) for ids, _ in tokens], axis=0)
        weights = torch.as_tensor(_SMOOTHING / (_SMOOTHING + counts / counts.sum()), dtype=torch.float32)
        means = []
        for (ids, starts), column in zip(tokens, columns, strict=True):
            table = tables[column.task]
            assert table is not None
            means.append(
                _average(table.detach().float().cpu(), torch.from_numpy(ids), torch.from_numpy(starts), weights)
            )
    # Both sides lose the same: what is left must stay comparable.
    common = torch.cat(means).mean(dim=0)
    units = [torch.nn.functional.normalize(mean - common, dim=1).numpy() for mean in means]
    for unit in units:
        # A text of nothing but the common part lies in no direction; any serves.
        unit[~unit.any(axis=1), 0] = 1.0
    return units


def _find_table(model: SentenceTransformer, task: str | None) -> torch.Tensor | None:
    """The (words, d) table of the model's first module, on the route of a task; None for a static model."""
    first: Any = model[0]
    if task is not None and hasattr(first, "sub_modules"):
        first = first.sub_modules[task][0]
    if isinstance(getattr(first, "embedding", None), nn.EmbeddingBag):
        return None
    transformer = getattr(first, "auto_model", None)
    table = getattr(transformer.get_input_embeddings(), "weight", None) if transformer is not None else None
    if not isinstance(table, torch.Tensor):
        raise ValueError(
            f"first_plan: word_vectors needs a model with word vectors, got one that starts with {type(first).__name__}. "
            "Use first_plan random or encode."
        )
    return table


def _tokenize(model: SentenceTransformer, texts: list[str], column: TextColumn) -> tuple[np.ndarray, np.ndarray]:
    """All token ids one after the other, int32, and (m,) int64 where each text starts."""
    ids, lengths = [], []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        features: Any = model.preprocess(
            texts[start : start + _TEXTS_AT_ONCE], prompt=column.prompt or None, task=column.task
        )
        mask = features["attention_mask"].bool()
        ids.append(features["input_ids"][mask].numpy().astype(np.int32))
        lengths.append(mask.sum(dim=1).numpy())
    starts = np.cumsum([0, *np.concatenate(lengths)])[:-1]
    return np.concatenate(ids), starts.astype(np.int64)


def _average(table: torch.Tensor, ids: torch.Tensor, starts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(m, d) weighted sums of word vectors; their length does not matter."""
    return torch.nn.functional.embedding_bag(ids, table, starts.int(), mode="sum", per_sample_weights=weights[ids])
