"""Reads a source as it stands: files, folders saved by `datasets`, retrieval sets, `docstrings`, `code`, or the hub."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value

from gcbs_st.corpora.code_pairs import SPLITS, load_code_pairs
from gcbs_st.corpora.docstring_pairs import load_docstring_pairs
from gcbs_st.corpora.retrieval_pairs import find_retrieval_set, load_retrieval_pairs

MIN_ROWS = 2  # one row has no in-batch negative
FROM_PACKAGES = ("docstrings", "code")  # sources that are made of the installed distributions

# pandas would read the captions "None", "NA" and "null" as missing; only an empty cell is.
CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}
LOADERS: dict[str, tuple[Callable[..., Dataset], dict[str, Any]]] = {
    ".jsonl": (Dataset.from_json, {}),
    ".json": (Dataset.from_json, {}),
    ".csv": (Dataset.from_csv, CSV_OPTIONS),
    ".tsv": (Dataset.from_csv, {**CSV_OPTIONS, "sep": "\t", "quoting": csv.QUOTE_MINIMAL}),
    ".parquet": (Dataset.from_parquet, {}),
    ".txt": (Dataset.from_text, {}),
}
ENDINGS = (*LOADERS, *(f"{ending}.gz" for ending in LOADERS if ending != ".parquet"))
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def read_source(
    source: str, *, split: str, name: str | None, data_files: str | None, distributions: Sequence[str] | None
) -> Any:
    """Returns what a source holds: a `Dataset`, or whatever `load_dataset` returns, with all its columns and rows.

    Arguments and errors are those of `gcbs_st.corpora.corpus.load_corpus`.
    """
    if data_files is not None and (source in FROM_PACKAGES or _expand(source).exists()):
        expected = "expected a data set on the hub: name the file in `source`"
        raise ValueError(f"got data_files={data_files!r} of {source!r}, {expected}")
    if source in FROM_PACKAGES:
        pairs = load_docstring_pairs(distributions) if source == "docstrings" else _code_pairs(distributions, split)
        texts = {"anchor": [anchor for anchor, _ in pairs], "positive": [positive for _, positive in pairs]}
        return Dataset.from_dict(texts, features=Features(dict.fromkeys(texts, Value("string"))))
    path = _expand(source)
    if path.is_file():
        return _read_file(path)
    if path.is_dir():
        if not any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
            raise ValueError(f"got the folder {path}, expected one written by save_to_disk, or the name of a file")
        return datasets.load_from_disk(str(path))
    if (files := find_retrieval_set(path)) is not None:
        return load_retrieval_pairs(files, split, _read_file)
    if source.startswith((".", "~")) or path.is_absolute() or path.name.lower().endswith(ENDINGS):
        raise FileNotFoundError(f"no such file or folder: {path} (source {source!r})")
    if data_files is None:
        return datasets.load_dataset(source, name, split=split)
    # As with local files: the captions "None" and "NA" are texts.
    options = LOADERS[".csv"][1] if data_files.lower().endswith((".csv", ".csv.gz")) else {}
    return datasets.load_dataset(source, name, data_files=data_files, split=split, **options)


def _code_pairs(distributions: Sequence[str] | None, split: str) -> list[tuple[str, str]]:
    if split not in SPLITS:
        raise ValueError(f"got split {split!r} of 'code', expected one of {', '.join(sorted(SPLITS))}")
    splits = load_code_pairs(distributions)
    if not splits[split]:
        counts = ", ".join(f"{name} {len(pairs)}" for name, pairs in splits.items())
        raise ValueError(
            f"got no pair in the split {split!r} of 'code' ({counts}): a distribution belongs to one split by its name, "
            "so install more, or name others in `distributions`"
        )
    return splits[split]


def _expand(source: str) -> Path:
    """The source as a path, with `~` and environment variables filled in."""
    for names in VARIABLE.findall(source):
        variable = "".join(names)
        if not os.environ.get(variable):
            raise ValueError(
                f"the environment variable {variable} of the source {source!r} is not set: "
                f"set it, for example with export {variable}=/path/to/folder"
            )
    return Path(os.path.expandvars(source)).expanduser()


def _read_file(path: Path) -> Dataset:
    ending = path.name.lower().removesuffix(".gz")
    ending = ending[ending.rfind(".") :]
    if not path.name.lower().endswith(ENDINGS):
        raise ValueError(f"got the file {path}, expected a name that ends with one of {', '.join(ENDINGS)}")
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
        if not file.read(1):  # the loaders' own message would be about a schema
            raise ValueError(f"got 0 rows, need at least {MIN_ROWS}: the file {path} is empty")
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    # The loaders' own cache looks at path and time only, so a file rewritten within the clock's tick would be stale.
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "gcbs_st" / content
    load, options = LOADERS[ending]
    return load(str(path), cache_dir=str(cache), **options)
