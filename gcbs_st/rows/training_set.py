"""The datasets that are trained on, by name: what is known of their rows, their fingerprint, and the planned columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset

from gcbs_st.rows.columns import TextColumn, read_columns, seen_names


@dataclass(frozen=True)
class TrainingPart:
    """One of the datasets that is trained on."""

    dataset: Dataset  # its rows
    columns: Sequence[TextColumn]  # that are planned on, anchors first; none where batches are not planned
    column_positions: Sequence[int] = (0, 1)  # of these columns among the columns of texts, as a loss sees them


def require_map_style(dataset: object) -> None:
    """Raises a TypeError unless rows can be counted and read by number."""
    for part in dataset.values() if isinstance(dataset, Mapping) else [dataset]:
        if not isinstance(part, Dataset):
            raise TypeError(
                f"got {type(part).__name__}, expected datasets.Dataset: its rows are counted and read by number, so load "
                "the data without streaming"
            )


def require_rows(dataset: object) -> None:
    """Raises a TypeError unless rows can be read by number, or are those of a single stream of Hugging Face's."""
    if not isinstance(dataset, IterableDataset):
        require_map_style(dataset)


def parts_of(datasets: Dataset | Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Returns the datasets by name, "" for the only one."""
    return dict(datasets) if isinstance(datasets, Mapping) else {"": datasets}


class DropColumns:
    """A transform of rows that drops columns from what another transform returns."""

    def __init__(self, transform: Callable[[dict[str, list[Any]]], dict[str, list[Any]]], columns: set[str]) -> None:
        self.transform, self.columns = transform, columns

    def __call__(self, block: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Returns some rows, by column, without the columns."""
        return {name: values for name, values in self.transform(block).items() if name not in self.columns}


def without_columns(datasets: Any, columns: Collection[str]) -> Any:
    """Returns datasets without some columns, which the host would embed as texts; anything else is returned as it is.

    Rows with a transform keep the columns for the transform, which may need them.
    """
    if not columns:
        return datasets
    if isinstance(datasets, Mapping):
        stripped = {name: without_columns(part, columns) for name, part in datasets.items()}
        return DatasetDict(stripped) if isinstance(datasets, DatasetDict) else stripped
    if isinstance(datasets, Dataset) and datasets.format["type"] == "custom":
        transform = datasets.format["format_kwargs"]["transform"]
        if isinstance(transform, DropColumns) and transform.columns == {*columns}:
            return datasets
        kept = {"columns": datasets.format["columns"], "output_all_columns": datasets.format["output_all_columns"]}
        return datasets.with_transform(DropColumns(transform, {*columns}), **kept)
    there = [name for name in columns if name in (getattr(datasets, "column_names", None) or ())]
    return datasets.remove_columns(there) if there else datasets  # also of an IterableDataset


@dataclass(frozen=True)
class RowFacts:
    """What the user says of the n rows of a dataset beside their texts."""

    groups: list[Any] | None = None  # rows of equal groups are positives of each other; None and NaN are no group
    positives: list[tuple[str, ...]] | None = None  # texts that are right answers to a row's anchor, beside its own


def read_row_facts(
    datasets: Dataset | Mapping[str, Dataset], group_column: str | None, positives_column: str | None
) -> dict[str, RowFacts]:
    """Returns what the two columns say of the rows, by name of the dataset.

    Columns are read as they are stored, or else as the dataset's transform makes them. Raises a ValueError if a column
    is in no dataset, or if the second one holds something else than lists of texts, or nothing.
    """
    groups = {} if group_column is None else _read_facts(datasets, "group_column", group_column)
    lists = {} if positives_column is None else _read_facts(datasets, "positives_column", positives_column)
    positives = {name: [_texts_in(one, row) for row, one in enumerate(values)] for name, values in lists.items()}
    return {name: RowFacts(groups.get(name), positives.get(name)) for name in parts_of(datasets)}


def _read_facts(datasets: Dataset | Mapping[str, Dataset], field: str, column: str) -> dict[str, list[Any]]:
    """(n,) values of a column by name of the dataset; datasets without it are left out."""
    found = {}
    for name, part in parts_of(datasets).items():
        if column in part.column_names:
            found[name] = list(part.with_format(None)[column])
        elif column in seen_names(part):
            found[name] = read_columns(part, np.arange(len(part)), [column])[0]
    if not found:
        there = {name: seen_names(part) for name, part in parts_of(datasets).items()}
        columns = there[""] if "" in there else there
        transformed = any(part.format["type"] == "custom" for part in parts_of(datasets).values())
        hint = " Its transform makes none of that name either." if transformed else ""
        raise ValueError(f"{field}: the training set has the columns {columns}, but no {column!r}.{hint}")
    return found


def _texts_in(listed: Any, row: int) -> tuple[str, ...]:
    if listed is None:
        return ()
    if not isinstance(listed, (list, tuple)) or not all(isinstance(text, str) for text in listed):
        raise ValueError(
            f"positives_column: row {row} of the training set holds {listed!r:.80}, expected a list of texts that are "
            "right answers to the row's anchor, or None."
        )
    return tuple(listed)


def fingerprint(datasets: Dataset | Mapping[str, Dataset]) -> str:
    """Returns a text that another training set would not have: hashes of its contents, or for media of its history."""
    hashes = []
    for part in parts_of(datasets).values():
        try:
            hashes.append(corpus_hash(part))
        except TypeError:
            hashes.append(str(part._fingerprint))
    return "-".join(hashes)


def corpus_hash(dataset: Dataset) -> str:
    """Returns 16 hexadecimal digits of a hash of the column names and all values in row order.

    It does not depend on how the data lie in memory. Raises a TypeError if a column holds something else than text,
    numbers, booleans or lists of them, such as images.
    """
    names = dataset.column_names
    digest = hashlib.sha256(json.dumps(names).encode())
    for batch in dataset.with_format(None).iter(batch_size=1000):
        for row in zip(*(batch[name] for name in names), strict=True):
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]


def planned_names(
    planner_columns: Sequence[str] | Mapping[str, Sequence[str]] | None, datasets: Dataset | DatasetDict
) -> dict[str, Sequence[str] | None]:
    """Returns, for each dataset, the names of the columns that it is planned on, None for its first two.

    Whether it has such columns is not looked at. Raises a ValueError if a mapping names a dataset that is not there.
    """
    names = list(parts_of(datasets))
    if not isinstance(planner_columns, Mapping):
        return dict.fromkeys(names, planner_columns)
    if unknown := [name for name in planner_columns if name not in names or name == ""]:
        there = f"the datasets {names}" if isinstance(datasets, Mapping) else "one dataset, which has no name"
        raise ValueError(f"planner_columns: got columns of {unknown[0]!r}, but the training set is {there}.")
    return {name: planner_columns.get(name) for name in names}
