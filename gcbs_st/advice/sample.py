"""Some rows of a dataset, embedded once: as many as fit into the time that is given."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from gcbs_st.embeddings.encode import encode_rows
from gcbs_st.rows.columns import TextColumn, read_columns

MOST_ROWS, LEAST_ROWS = 16_384, 512
# Tokens that long texts are cut to where too few of them would fit into the time otherwise.
CUT_TOKENS = 128
TEXTS_PER_PASS = 64
_TRIAL_ROWS, _CHUNK_ROWS = 128, 256


@dataclass(frozen=True)
class Sample:
    """Rows of a dataset and their embeddings."""

    rows: np.ndarray  # (m,) ids, ascending
    anchors: np.ndarray  # (m, d) float32 unit rows
    positives: np.ndarray  # (m, d); the same object where a text is both sides
    rows_per_second: float  # that the model embeds, both sides
    cut: bool  # whether texts were cut to `CUT_TOKENS`
    dropped: int  # rows of which the model makes no direction


def embed_sample(
    model: Any,
    dataset: Dataset,
    columns: Sequence[TextColumn],
    *,
    seconds: float,
    row_count: int | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> Sample:
    """Returns random rows of a dataset, embedded.

    As many as the model embeds in about `seconds`: a power of two from 512 to 16,384, doubled while the next doubling
    fits, or all rows where there are fewer; `row_count` says another number. Where the first 128 rows show that not even
    1,024 fit, long texts are cut to 128 tokens. Raises a ValueError if the model makes a direction of fewer than two rows.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))[: row_count or MOST_ROWS]
    encode_rows(
        model, dataset, order[:8], columns, batch_size=TEXTS_PER_PASS
    )  # the first pass pays for what is built once
    trial = order[:_TRIAL_ROWS]
    began = time.perf_counter()
    encode_rows(model, dataset, trial, columns, batch_size=TEXTS_PER_PASS)
    rate = len(trial) / max(1e-9, time.perf_counter() - began)
    limit = getattr(model, "max_seq_length", None)
    slow = row_count is None and rate * seconds < 2 * LEAST_ROWS < len(order)
    cut = slow and isinstance(limit, int) and limit > CUT_TOKENS and _are_long(dataset, trial, columns)
    parts: list[list[np.ndarray]] = []
    done, began = 0, time.perf_counter()
    try:
        if cut:
            model.max_seq_length = CUT_TOKENS
        with tqdm(total=len(order), desc="embedding", unit=" rows", disable=not show_progress) as bar:
            while done < len(order) and (
                row_count is not None or _goes_on(done, time.perf_counter() - began, seconds)
            ):
                chunk = order[done : done + _CHUNK_ROWS]
                parts.append(encode_rows(model, dataset, chunk, columns, batch_size=TEXTS_PER_PASS))
                done += len(chunk)
                bar.update(len(chunk))
    finally:
        if cut:
            model.max_seq_length = limit
    spent = time.perf_counter() - began
    ascending = np.argsort(order[:done])
    sides = [np.concatenate(side)[ascending] for side in zip(*parts, strict=True)]
    whole = np.all([side.any(axis=1) for side in sides], axis=0)
    if whole.sum() < 2:
        raise ValueError(f"the model embeds {int(whole.sum())} of {done} rows, expected at least 2")
    kept = [side if whole.all() else side[whole] for side in sides]
    return Sample(
        rows=order[:done][ascending][whole],
        anchors=kept[0],
        positives=kept[0] if len(columns) == 1 else kept[-1],
        rows_per_second=rate if cut else done / max(1e-9, spent),
        cut=cut,
        dropped=int((~whole).sum()),
    )


def _goes_on(done: int, spent: float, seconds: float) -> bool:
    """Whether more rows are embedded: up to the least, up to the next power of two, and while twice as many fit."""
    return done < LEAST_ROWS or (done & (done - 1)) != 0 or 2 * spent <= seconds


def _are_long(dataset: Dataset, rows: np.ndarray, columns: Sequence[TextColumn]) -> bool:
    """Whether any of the texts has more than `CUT_TOKENS` tokens, at four characters each."""
    texts = read_columns(dataset, rows, [column.name for column in columns])
    return any(len(text) > 4 * CUT_TOKENS for side in texts for text in side)
