"""Training texts as a ``datasets.Dataset``: named sources in, text columns in the order the losses expect out.

In: a file, a folder saved by ``datasets``, the word ``docstrings``, or the name of a data set on the Hugging Face hub.
Out: a ``Dataset`` with the columns ``anchor``, ``positive``, perhaps negatives and a ``group``; no blank text.
Why: planning needs rows that can be counted and addressed by number, and sentence-transformers reads columns in order.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from gcbs_st.docstrings import load_docstring_pairs

logger = logging.getLogger(__name__)

MIN_ROWS = 2  # one row has no in-batch negative

# pandas would read the captions "None", "NA" and "null" as missing; only an empty cell is.
CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}
LOADERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    ".jsonl": (Dataset.from_json, {}),
    ".json": (Dataset.from_json, {}),
    ".csv": (Dataset.from_csv, CSV_OPTIONS),
    ".tsv": (Dataset.from_csv, {**CSV_OPTIONS, "sep": "\t", "quoting": csv.QUOTE_MINIMAL}),
    ".parquet": (Dataset.from_parquet, {}),
    ".txt": (Dataset.from_text, {}),
}
ENDINGS = (*LOADERS, *(f"{ending}.gz" for ending in LOADERS if ending != ".parquet"))
NEGATIVE = re.compile(r"negative(_\d+)?")
TEXT_TYPES = ("string", "large_string", "string_view")
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


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
            word ``docstrings``, or a data set on the hub. ``~`` and environment variables are expanded.
        columns: the text columns in the order anchor, positive, negatives. One column means unsupervised training,
            where anchor and positive are the same text. If None, the columns are taken that are called ``anchor``,
            ``positive`` and ``negative...``, or else the only text column.
        split: which split of a hub data set or a saved ``DatasetDict``; files have no splits.
        name: configuration of a hub data set.
        data_files: which file of a hub data set is read, where it holds several of different kinds.
        group: a column that says which rows mean the same; kept under the name ``group``.
        distributions: for ``docstrings``, the Python distributions to read; all installed ones if None.
        max_rows: keep at most this many usable rows: the first ones, or, of the alphabetically sorted
            ``docstrings``, evenly spaced ones.

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
    dataset = _read(source, split=split, name=name, data_files=data_files, distributions=distributions)
    require_map_style(dataset)
    if isinstance(dataset, Mapping):
        dataset = _pick_split(dataset, split, source)
    dataset = _without_blank_rows(_choose_columns(dataset, columns, group), source)
    if max_rows is not None and len(dataset) > max_rows:
        spread = source == "docstrings"
        rows = np.linspace(0, len(dataset) - 1, max_rows).astype(int) if spread else range(max_rows)
        dataset = dataset.select(rows)
    if len(dataset) < MIN_ROWS:
        raise ValueError(
            f"got {len(dataset)} rows, need at least {MIN_ROWS} rows with text in {source!r}: "
            "check the file, the split and the columns"
        )
    return dataset


def require_map_style(dataset: object) -> None:
    """Return if rows can be counted and addressed by number, which planning needs; raise otherwise.

    Args:
        dataset: a ``Dataset``, or a ``DatasetDict`` or another mapping of them.

    Raises:
        TypeError: anything else, such as an ``IterableDataset``.
    """
    for part in dataset.values() if isinstance(dataset, Mapping) else [dataset]:
        if not isinstance(part, Dataset):
            raise TypeError(
                f"got {type(part).__name__}, expected datasets.Dataset: planning batches needs the number of rows "
                "and access by row number, so load the data without streaming"
            )


def corpus_hash(dataset: Dataset) -> str:
    """Return a hash of the column names and all values in row order, however the data lie in memory.

    Args:
        dataset: columns of text, numbers, booleans or lists of them.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.

    Raises:
        TypeError: a column holds something else, such as images.
    """
    names = dataset.column_names
    digest = hashlib.sha256(json.dumps(names).encode())
    for batch in dataset.with_format(None).iter(batch_size=1000):
        for row in zip(*(batch[name] for name in names), strict=True):
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]


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


def _read(
    source: str, *, split: str, name: str | None, data_files: str | None, distributions: Sequence[str] | None
) -> Any:
    """Return what the source holds: a ``Dataset``, or whatever ``load_dataset`` gives."""
    if data_files is not None and (source == "docstrings" or _expand(source).exists()):
        raise ValueError(
            f"got data_files={data_files!r} of {source!r}, expected a data set on the hub: name the file in `source`"
        )
    if source == "docstrings":
        pairs = load_docstring_pairs(distributions)
        texts = {"anchor": [summary for summary, _ in pairs], "positive": [paragraph for _, paragraph in pairs]}
        return Dataset.from_dict(texts, features=Features(dict.fromkeys(texts, Value("string"))))
    path = _expand(source)
    if path.is_file():
        return _read_file(path)
    if path.is_dir():
        if not any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
            raise ValueError(f"got the folder {path}, expected one written by save_to_disk, or the name of a file")
        return datasets.load_from_disk(str(path))
    if source.startswith((".", "~")) or path.is_absolute() or path.name.lower().endswith(ENDINGS):
        raise FileNotFoundError(f"no such file or folder: {path} (source {source!r})")
    if data_files is None:
        return datasets.load_dataset(source, name, split=split)
    # As with local files: the captions "None" and "NA" are texts.
    options = LOADERS[".csv"][1] if data_files.lower().endswith((".csv", ".csv.gz")) else {}
    return datasets.load_dataset(source, name, data_files=data_files, split=split, **options)


def _expand(source: str) -> Path:
    """Return the source as a path, with ``~`` and environment variables filled in."""
    for names in VARIABLE.findall(source):
        variable = "".join(names)
        if not os.environ.get(variable):
            raise ValueError(
                f"the environment variable {variable} of the source {source!r} is not set: "
                f"set it, for example with export {variable}=/path/to/folder"
            )
    return Path(os.path.expandvars(source)).expanduser()


def _read_file(path: Path) -> Dataset:
    """Return the rows of a local file, from a cache that is keyed by the file's content."""
    ending = path.name.lower().removesuffix(".gz")
    ending = ending[ending.rfind(".") :]
    if not path.name.lower().endswith(ENDINGS):
        raise ValueError(f"got the file {path}, expected a name that ends with one of {', '.join(ENDINGS)}")
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
        empty = not file.read(1)
    if empty:  # the loaders' own message would be about a schema
        raise ValueError(f"got 0 rows, need at least {MIN_ROWS}: the file {path} is empty")
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    # The loaders' own cache looks at path and time only, so a file rewritten within the clock's tick would be stale.
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "gcbs_st" / content
    load, options = LOADERS[ending]
    dataset: Dataset = load(str(path), cache_dir=str(cache), **options)
    return dataset


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
