"""The datasets that are trained on: by name, with or without the groups of their rows, and what tells them from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from gcbs_st.rows.columns import TextColumn, read_columns, seen_names


@dataclass(frozen=True)
class TrainingPart:
    """One of the datasets that is trained on.

    Attributes:
        dataset: its rows.
        columns: that are planned on, anchors first; none where batches are not planned.
        column_positions: of these columns among the columns of texts, as a loss sees them.
    """

    dataset: Dataset
    columns: Sequence[TextColumn]
    column_positions: Sequence[int] = (0, 1)


def require_map_style(dataset: object) -> None:
    """Raises unless rows can be counted and addressed by number, which planning needs.

    Args:
        dataset: a `Dataset`, or a `DatasetDict` or another mapping of them.

    Raises:
        TypeError: anything else, such as an `IterableDataset`.
    """
    for part in dataset.values() if isinstance(dataset, Mapping) else [dataset]:
        if not isinstance(part, Dataset):
            raise TypeError(
                f"got {type(part).__name__}, expected datasets.Dataset: planning batches needs the number of rows "
                "and access by row number, so load the data without streaming"
            )


def parts_of(datasets: Dataset | Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Returns the datasets by name, "" for the only one.

    Args:
        datasets: what the trainer trains on or evaluates.
    """
    return dict(datasets) if isinstance(datasets, Mapping) else {"": datasets}


class DropColumn:
    """A transform of rows that drops a column from what another transform gives."""

    def __init__(self, transform: Callable[[dict[str, list[Any]]], dict[str, list[Any]]], column: str) -> None:
        """Takes the other transform.

        Args:
            transform: as `Dataset.set_transform` takes it.
            column: that is dropped, if it is there.
        """
        self.transform, self.column = transform, column

    def __call__(self, block: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Returns the block without the column.

        Args:
            block: some rows, by column.
        """
        return {name: values for name, values in self.transform(block).items() if name != self.column}


def without_column(datasets: Any, column: str) -> Any:
    """Returns datasets without a column, which the host would embed as text.

    Args:
        datasets: a `Dataset`, a mapping of them, or anything else, which is returned as it is.
        column: dropped where it is there. Rows with a transform keep it for the transform, which may need it.
    """
    if isinstance(datasets, Mapping):
        stripped = {name: without_column(part, column) for name, part in datasets.items()}
        return DatasetDict(stripped) if isinstance(datasets, DatasetDict) else stripped
    if not isinstance(datasets, Dataset):
        if column in (getattr(datasets, "column_names", None) or ()):
            return datasets.remove_columns(column)  # an IterableDataset
        return datasets
    if datasets.format["type"] == "custom":
        transform = datasets.format["format_kwargs"]["transform"]
        if isinstance(transform, DropColumn) and transform.column == column:
            return datasets
        kept = {"columns": datasets.format["columns"], "output_all_columns": datasets.format["output_all_columns"]}
        return datasets.with_transform(DropColumn(transform, column), **kept)
    return datasets.remove_columns(column) if column in datasets.column_names else datasets


def read_groups(datasets: Dataset | Mapping[str, Dataset], column: str) -> dict[str, list[Any]]:
    """Returns the groups of the rows of those datasets that have any.

    Args:
        datasets: what the trainer was given.
        column: whose equal values mark rows that must not share a batch. It is read as it is stored, or else as the
            dataset's transform makes it.

    Returns:
        (n,) values by name of the dataset; a dataset without the column is left out.

    Raises:
        ValueError: no dataset has such a column.
    """
    groups = {}
    for name, part in parts_of(datasets).items():
        if column in part.column_names:
            groups[name] = list(part.with_format(None)[column])
        elif column in seen_names(part):
            groups[name] = read_columns(part, np.arange(len(part)), [column])[0]
    if not groups:
        there = {name: seen_names(part) for name, part in parts_of(datasets).items()}
        columns = there[""] if "" in there else there
        transformed = any(part.format["type"] == "custom" for part in parts_of(datasets).values())
        hint = " Its transform makes none of that name either." if transformed else ""
        raise ValueError(f"group_column: the training set has the columns {columns}, but no {column!r}.{hint}")
    return groups


def fingerprint(datasets: Dataset | Mapping[str, Dataset]) -> str:
    """Returns a text that another training set would not have.

    Args:
        datasets: what the trainer trains on.

    Returns:
        Hashes of the contents; of media, which have no plain content to hash, the history stands for it.
    """
    hashes = []
    for part in parts_of(datasets).values():
        try:
            hashes.append(corpus_hash(part))
        except TypeError:
            hashes.append(str(part._fingerprint))
    return "-".join(hashes)


def corpus_hash(dataset: Dataset) -> str:
    """Returns a hash of the column names and all values in row order, however the data lie in memory.

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


def planned_names(
    planner_columns: Sequence[str] | Mapping[str, Sequence[str]] | None, datasets: Dataset | DatasetDict
) -> dict[str, Sequence[str] | None]:
    """Returns the names of the columns that each dataset is planned on, None for its first two.

    Args:
        planner_columns: the field of the arguments.
        datasets: what the trainer trains on.

    Returns:
        One entry for each dataset, see `parts_of`. Whether it has such columns is not looked at.

    Raises:
        ValueError: a mapping that names a dataset which is not there.
    """
    names = list(parts_of(datasets))
    if not isinstance(planner_columns, Mapping):
        return dict.fromkeys(names, planner_columns)
    if unknown := [name for name in planner_columns if name not in names or name == ""]:
        there = f"the datasets {names}" if isinstance(datasets, Mapping) else "one dataset, which has no name"
        raise ValueError(f"planner_columns: got columns of {unknown[0]!r}, but the training set is {there}.")
    return {name: planner_columns.get(name) for name in names}
