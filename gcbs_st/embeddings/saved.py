"""Embeddings of a whole dataset on disk: a model and a dataset in, two `.npy` files of unit rows out.

They are written as they are made, so that memory does not grow with the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from datasets import Dataset, Value
from tqdm import tqdm

from gcbs_st.embeddings.encode import NoEmbeddingError, encode_rows
from gcbs_st.files import whole_file
from gcbs_st.rows.columns import TextColumn, has_text, is_text

DTYPES = ("float16", "float32")
CHUNK_ROWS = 8192
_CHECKED_ROWS = 10_000


def save_embeddings(  # noqa: PLR0913 - a keyword for each choice
    model: Any,
    dataset: Dataset,
    columns: Sequence[TextColumn],
    anchors: Path,
    positives: Path,
    *,
    batch_size: int = 128,
    dtype: str = "float16",
    chunk_rows: int = CHUNK_ROWS,
    progress: str | None = None,
) -> tuple[int, int]:
    """Writes the embeddings of a dataset's n rows into two `.npy` files, and returns their shape (n, d).

    Args:
        model: a SentenceTransformer.
        dataset: the rows; row i of the files is row i of it.
        columns: the column of the anchors and that of the positives, with their prompts; one column is both.
        anchors: the file of the anchors' (n, d) unit rows; a file of that name is replaced when both are whole.
        positives: that of the positives.
        batch_size: texts per forward pass.
        dtype: "float16" or "float32".
        chunk_rows: rows that are embedded at a time, each distinct text once.
        progress: what the progress bar says, None for no bar.

    Returns:
        n and d. Raises a ValueError for a column that is missing or holds no texts, a row without text (before the model
        is asked for anything), or a row whose embedding is zero, NaN or infinite. Then nothing is left of the files.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    if not 1 <= len(columns) <= 2:
        raise ValueError(f"columns: got {len(columns)}, expected two, anchors and positives, or one that is both")
    if chunk_rows < 1 or batch_size < 1:
        raise ValueError(f"got chunk_rows={chunk_rows} and batch_size={batch_size}, expected at least 1")
    if anchors.resolve() == positives.resolve():
        raise ValueError(f"got the file {anchors} for anchors and for positives, expected two names")
    check_texts(dataset, [column.name for column in columns])
    sides = [columns[0], columns[-1]]
    width = 0
    with (
        whole_file(anchors) as first,
        whole_file(positives) as second,
        tqdm(total=len(dataset), desc=progress, unit=" rows", disable=progress is None) as bar,
    ):
        for start in range(0, len(dataset), chunk_rows):
            rows = np.arange(start, min(start + chunk_rows, len(dataset)))
            arrays = _encode(model, dataset, rows, sides, batch_size)
            for file, array, column in zip((first, second), arrays, sides, strict=True):
                _refuse_zeros(dataset, rows, array, column)
                if start == 0:
                    width = array.shape[1]
                    _write_header(file, (len(dataset), width), dtype)
                file.write(array.astype(dtype).tobytes())
            bar.update(len(rows))
    return len(dataset), width


def check_texts(dataset: Dataset, names: Sequence[str]) -> None:
    """Raises a ValueError unless the dataset has rows, and each has a text in each of the columns."""
    for name in names:
        if name not in dataset.column_names:
            raise ValueError(
                f"got the column {name!r}, expected one of {', '.join(dataset.column_names)}: say with columns "
                "(--columns) which hold the anchors and the positives"
            )
        kind = dataset.features[name]
        if not is_text(kind):
            raise ValueError(f"column {name!r} holds {_kind(kind)}, expected texts: choose another with --columns")
    if not len(dataset):
        raise ValueError("got a dataset of 0 rows, expected at least one")
    plain = dataset.with_format("arrow")
    for start in range(0, len(dataset), _CHECKED_ROWS):
        block: pa.Table = plain[start : start + _CHECKED_ROWS]
        for name in names:
            if len(blank := np.flatnonzero(~has_text(block[name]))):
                raise ValueError(
                    f"row {start + int(blank[0])} has no text in column {name!r}, expected one in each row: remove "
                    "such rows from the dataset first, since rows of the files are rows of it"
                )


def default_columns(dataset: Dataset) -> list[str]:
    """Returns `anchor` and `positive` where a dataset has both, else its first two columns of texts, or its only one.

    Raises a ValueError if it has none.
    """
    if {"anchor", "positive"} <= set(dataset.column_names):
        return ["anchor", "positive"]
    texts = [name for name, kind in dataset.features.items() if is_text(kind)]
    if not texts:
        raise ValueError(f"got the columns {', '.join(dataset.column_names)}, expected one or two that hold texts")
    return texts[:2]


def _encode(
    model: Any, dataset: Dataset, rows: np.ndarray, sides: Sequence[TextColumn], batch_size: int
) -> list[np.ndarray]:
    """Unit rows for each side, zeros where there is no embedding, also where that is so of all of them."""
    try:
        return encode_rows(model, dataset, rows, sides, batch_size=batch_size)
    except NoEmbeddingError:
        # Which row it is says more than that it is all of them.
        return [np.zeros((len(rows), 1), np.float32) for _ in sides]


def _refuse_zeros(dataset: Dataset, rows: np.ndarray, array: np.ndarray, column: TextColumn) -> None:
    if len(empty := np.flatnonzero(~array.any(axis=1))):
        row = int(rows[empty[0]])
        raise ValueError(
            f"the embedding of row {row}, column {column.name!r}, is zero, NaN or infinite ({dataset[row][column.name]!r:.80}): "
            "expected a direction. Remove the row, or take another model"
        )


def _write_header(file: BinaryIO, shape: tuple[int, int], dtype: str) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)


def _kind(feature: Any) -> str:
    return str(feature.dtype) if isinstance(feature, Value) else type(feature).__name__
