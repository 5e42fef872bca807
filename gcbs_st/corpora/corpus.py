"""Reads the training texts of a source into a `Dataset` with columns in the order that losses expect."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset, Value, concatenate_datasets

from gcbs_st.corpora.sources import FROM_PACKAGES, MIN_ROWS, read_source
from gcbs_st.rows.columns import has_text
from gcbs_st.rows.training_set import require_map_style

logger = logging.getLogger(__name__)

NEGATIVE = re.compile(r"negative(_\d+)?")
TEXT_TYPES = ("string", "large_string", "string_view")


def load_corpus(  # noqa: PLR0913 -- one argument for each key of a config's corpus block
    source: str,
    *,
    columns: Sequence[str] | None = None,
    split: str = "train",
    name: str | None = None,
    data_files: str | None = None,
    group: str | None = None,
    distributions: Sequence[str] | None = None,
    max_rows: int | None = None,
) -> Dataset:
    """Returns the training texts of a source: `anchor`, `positive`, `negative` or `negative_1` ..., and `group`.

    Rows with a missing or blank text are left out.

    Args:
        source: a file (jsonl, json, csv, tsv, txt: also with .gz; parquet), a folder saved by `save_to_disk`, the
            word `docstrings` or `code`, a retrieval set `FOLDER/NAME` (files NAME.queries.jsonl, NAME.corpus.jsonl and
            NAME.qrels.jsonl; anchor, positive and query_id), or a data set on the hub. `~` and environment variables
            are expanded.
        columns: the text columns in the order anchor, positive, negatives. One column means unsupervised training,
            where anchor and positive are the same text. A list of strings, as of tokens, is joined with blanks. None
            takes the columns called `anchor`, `positive` and `negative...`, or else the only text column.
        split: of a hub data set, a saved `DatasetDict`, a retrieval set or `code`; files have no splits.
        name: configuration of a hub data set.
        data_files: which file of a hub data set is read, where it holds several of different kinds.
        group: a column that says which rows mean the same; kept under the name `group`.
        distributions: for `docstrings` and `code`, the Python distributions to read; None for all installed ones.
        max_rows: keep at most this many usable rows: the first ones, or, of the sorted `docstrings` and `code`,
            evenly spaced ones.

    Returns:
        At least two rows; raises a FileNotFoundError for a path that does not exist, a TypeError for a source that can
        only be streamed, and a ValueError if an argument does not fit, or fewer than two rows are left.
    """
    if max_rows is not None and max_rows < MIN_ROWS:
        raise ValueError(f"got max_rows={max_rows}, expected at least {MIN_ROWS} or None")
    dataset = read_rows(source, split=split, name=name, data_files=data_files, distributions=distributions)
    dataset = _without_blank_rows(_choose_columns(dataset, columns, group), source)
    if max_rows is not None and len(dataset) > max_rows:
        spread = source in FROM_PACKAGES
        rows = np.linspace(0, len(dataset) - 1, max_rows).astype(int) if spread else range(max_rows)
        dataset = dataset.select(rows)
    if len(dataset) < MIN_ROWS:
        raise ValueError(
            f"got {len(dataset)} rows, need at least {MIN_ROWS} rows with text in {source!r}: "
            "check the file, the split and the columns"
        )
    return dataset


def read_rows(
    source: str,
    *,
    split: str = "train",
    name: str | None = None,
    data_files: str | None = None,
    distributions: Sequence[str] | None = None,
) -> Dataset:
    """Returns all rows and columns of a source as they stand, so that row i is the i-th of the source.

    Arguments and errors are those of `load_corpus`.
    """
    dataset = read_source(source, split=split, name=name, data_files=data_files, distributions=distributions)
    require_map_style(dataset)
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise ValueError(f"got split {split!r} of {source!r}, expected one of {list(dataset)}")
        dataset = dataset[split]
    return dataset


def join_corpora(parts: Sequence[Dataset]) -> Dataset:
    """Returns the rows of several corpora, one after the other; raises a ValueError if their columns differ.

    Equal groups of two corpora stay two groups.
    """
    names = [part.column_names for part in parts]
    if any(set(other) != set(names[0]) for other in names):
        raise ValueError(
            f"got corpora with the columns {names}, expected the same of each: choose them with `columns`"
        )
    if "group" in names[0]:
        parts = [
            part.remove_columns("group").add_column("group", [f"{number} {value}" for value in part["group"]])
            for number, part in enumerate(parts)
        ]
    return concatenate_datasets([part.select_columns(parts[0].column_names) for part in parts])


def split_held_out(dataset: Dataset, rows: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Returns a training part and a held-out part of `rows` rows that share no text, each in the dataset's order.

    Rows with only some of their texts held out are in neither part. The same seed gives the same parts. Raises a
    ValueError if `rows` is not in [1, n - 2], or fewer than two rows are left for training.
    """
    if not 1 <= rows <= len(dataset) - MIN_ROWS:
        most = len(dataset) - MIN_ROWS
        raise ValueError(f"got rows={rows} to hold out, expected 1 to {most} of {len(dataset)} rows")
    order = np.random.default_rng(seed).permutation(len(dataset))
    held_out = dataset.select(np.sort(order[:rows]))
    train = dataset.select(np.sort(order[rows:]))
    texts = [column for column in _text_columns(dataset) if column != "group"]
    seen = {text for column in texts for text in held_out[column]}
    shared = np.zeros(len(train), dtype=bool)
    for column in texts:
        shared |= np.fromiter((text in seen for text in train[column]), dtype=bool, count=len(train))
    train = train.select(np.flatnonzero(~shared))
    if shared.any():
        logger.info("dropped %d training rows of which a text is held out", shared.sum())
    if len(train) < MIN_ROWS:
        raise ValueError(f"got {len(train)} training rows, need at least {MIN_ROWS}: hold out fewer rows")
    return train, held_out


def _text_columns(dataset: Dataset) -> list[str]:
    return [name for name, kind in dataset.features.items() if isinstance(kind, Value) and kind.dtype in TEXT_TYPES]


def _default_columns(dataset: Dataset, group: str | None) -> list[str]:
    if {"anchor", "positive"} <= set(dataset.column_names):
        return ["anchor", "positive", *filter(NEGATIVE.fullmatch, dataset.column_names)]
    texts = [column for column in _text_columns(dataset) if column != group]
    if len(texts) != 1:
        raise ValueError(
            f"got {len(texts)} text columns {texts} of {dataset.column_names}, expected anchor and positive, or only "
            "one text column: say with `columns` which to use, in the order anchor, positive, negatives"
        )
    return texts


def _choose_columns(dataset: Dataset, columns: Sequence[str] | None, group: str | None) -> Dataset:
    """The dataset with its text columns named anchor, positive, negatives, and its group."""
    columns = [columns] if isinstance(columns, str) else columns
    chosen = _default_columns(dataset, group) if columns is None else list(columns)
    wanted = chosen if group is None else [*chosen, group]
    missing = [column for column in wanted if column not in dataset.column_names]
    if missing or not chosen:
        raise ValueError(f"got columns {wanted}, expected one or more of {dataset.column_names}; missing: {missing}")
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"got columns {wanted}, expected each once; for unsupervised training name one column")
    for column in chosen:
        dataset = _joined(dataset, column)
        if column not in _text_columns(dataset):
            raise ValueError(f"got column {column!r} of type {dataset.features[column]}, expected strings")
    names = dict(zip(chosen, _names(len(chosen)), strict=False))
    if group is not None:
        names[group] = "group"
    dataset = dataset.with_format(None).select_columns(wanted).rename_columns(names)
    if len(chosen) == 1:
        dataset = dataset.add_column("positive", dataset.with_format("arrow")[:]["anchor"])
    order = [*_names(max(len(chosen), 2)), *(["group"] if group is not None else [])]
    return dataset.select_columns(order)


def _joined(dataset: Dataset, column: str) -> Dataset:
    """The dataset with a column of lists of strings, such as tokens, as texts; any other stays as it is."""
    kind = dataset.features[column]
    inner = kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)
    if getattr(inner, "dtype", None) not in TEXT_TYPES:
        return dataset
    dataset = dataset.with_format(None)
    texts = [None if tokens is None else " ".join(filter(None, tokens)) for tokens in dataset[column]]
    return dataset.remove_columns(column).add_column(column, texts, feature=Value("string"))


def _names(count: int) -> list[str]:
    negatives = ["negative"] if count == 3 else [f"negative_{number}" for number in range(1, count - 1)]
    return ["anchor", "positive", *negatives][: max(count, 1)]


def _without_blank_rows(dataset: Dataset, source: str) -> Dataset:
    table = dataset.with_format("arrow")[:]
    usable = np.ones(len(dataset), dtype=bool)
    for column in _text_columns(dataset):
        if column != "group":
            usable &= has_text(table[column])
    if usable.all():
        return dataset
    logger.warning("dropped %d of %d rows of %s: a text is missing or blank", (~usable).sum(), len(dataset), source)
    return dataset.select(np.flatnonzero(usable))
