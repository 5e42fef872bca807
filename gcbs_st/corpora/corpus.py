"""Training texts as a ``datasets.Dataset``: named sources in, text columns in the order the losses expect out.

In: a file, a folder saved by ``datasets``, ``docstrings``, ``code``, or the name of a data set on the Hugging Face hub.
Out: a ``Dataset`` with the columns ``anchor``, ``positive``, perhaps negatives and a ``group``; no blank text.
Why: planning needs rows that can be counted and addressed by number, and sentence-transformers reads columns in order.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Value

from gcbs_st.corpora.sources import FROM_PACKAGES, MIN_ROWS, read_source
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
    """Return the training texts of a source.

    Args:
        source: a file (jsonl, json, csv, tsv, txt: also with .gz; parquet), a folder saved by ``save_to_disk``, the
            word ``docstrings`` or ``code``, or a data set on the hub. ``~`` and environment variables are expanded.
        columns: the text columns in the order anchor, positive, negatives. One column means unsupervised training,
            where anchor and positive are the same text. A list of strings, as of tokens, is joined with blanks. If None, the columns are taken that are called ``anchor``,
            ``positive`` and ``negative...``, or else the only text column.
        split: which split of a hub data set, a saved ``DatasetDict`` or ``code``; files have no splits.
        name: configuration of a hub data set.
        data_files: which file of a hub data set is read, where it holds several of different kinds.
        group: a column that says which rows mean the same; kept under the name ``group``.
        distributions: for ``docstrings`` and ``code``, the Python distributions to read; all installed ones if None.
        max_rows: keep at most this many usable rows: the first ones, or, of the sorted ``docstrings`` and ``code``,
            evenly spaced ones.

    Returns:
        Rows with the columns ``anchor``, ``positive``, then ``negative`` or ``negative_1``, ``negative_2``, ..., and
        ``group``. Rows with a missing or blank text are left out.

    Raises:
        FileNotFoundError: the source looks like a path and does not exist.
        TypeError: the source can only be streamed.
        ValueError: a column, split, environment variable or distribution is missing, the columns are ambiguous or
            not text, the file has an unknown ending, `data_files` of a local source, or fewer than two rows are left.
    """
    if max_rows is not None and max_rows < MIN_ROWS:
        raise ValueError(f"got max_rows={max_rows}, expected at least {MIN_ROWS} or None")
    dataset = read_source(source, split=split, name=name, data_files=data_files, distributions=distributions)
    require_map_style(dataset)
    if isinstance(dataset, Mapping):
        dataset = _pick_split(dataset, split, source)
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


def split_held_out(dataset: Dataset, rows: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Return a training part and a held-out part that share no text.

    Args:
        dataset: n rows of text columns, as `load_corpus` returns them.
        rows: number of rows to hold out, in [1, n - 2].
        seed: of the random choice; the same seed gives the same parts.

    Returns:
        (train, held-out), each in the order of `dataset`. Rows of which a text is also held out are in neither part.

    Raises:
        ValueError: `rows` is out of range, or fewer than two rows are left for training.
    """
    if not 1 <= rows <= len(dataset) - MIN_ROWS:
        raise ValueError(
            f"got rows={rows} to hold out, expected 1 to {len(dataset) - MIN_ROWS} of {len(dataset)} rows"
        )
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
        raise ValueError(
            f"got {len(train)} training rows without a held-out text, need at least {MIN_ROWS}: hold out fewer rows"
        )
    return train, held_out


def _pick_split(parts: Mapping[str, Dataset], split: str, source: str) -> Dataset:
    """Return one split of several."""
    if split not in parts:
        raise ValueError(f"got split {split!r} of {source!r}, expected one of {list(parts)}")
    return parts[split]


def _text_columns(dataset: Dataset) -> list[str]:
    """Return the names of the columns of strings, in order."""
    types = dataset.features
    return [
        name for name in dataset.column_names if isinstance(types[name], Value) and types[name].dtype in TEXT_TYPES
    ]


def _default_columns(dataset: Dataset, group: str | None) -> list[str]:
    """Return the text columns to use when the user named none."""
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
    """Return the dataset with its text columns named anchor, positive, negatives, and its group."""
    if columns is None:
        chosen = _default_columns(dataset, group)
    else:
        chosen = [columns] if isinstance(columns, str) else list(columns)
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
    """Return the dataset with a column of lists of strings, such as tokens, as texts; any other stays as it is."""
    kind = dataset.features[column]
    inner = kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)
    if getattr(inner, "dtype", None) not in TEXT_TYPES:
        return dataset
    texts = [
        None if tokens is None else " ".join(filter(None, tokens)) for tokens in dataset.with_format(None)[column]
    ]
    return dataset.with_format(None).remove_columns(column).add_column(column, texts, feature=Value("string"))


def _names(count: int) -> list[str]:
    """Return the names of so many text columns."""
    negatives = ["negative"] if count == 3 else [f"negative_{number}" for number in range(1, count - 1)]
    return ["anchor", "positive", *negatives][: max(count, 1)]


def _without_blank_rows(dataset: Dataset, source: str) -> Dataset:
    """Return the dataset without the rows of which a text is missing or blank."""
    table = dataset.with_format("arrow")[:]
    usable = np.ones(len(dataset), dtype=bool)
    for column in _text_columns(dataset):
        if column != "group":
            lengths = pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(table[column])), 0)
            usable &= lengths.to_numpy() > 0
    if usable.all():
        return dataset
    logger.warning("dropped %d of %d rows of %s: a text is missing or blank", (~usable).sum(), len(dataset), source)
    return dataset.select(np.flatnonzero(usable))
