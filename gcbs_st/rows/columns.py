"""The columns of a dataset that hold texts, as the training loader sees them, and how training preprocesses each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset, Value

_READ_ROWS = 10_000
_TEXT_TYPES = ("string", "large_string")


@dataclass(frozen=True)
class TextColumn:
    """A column of the dataset and how training preprocesses it."""

    name: str  # of the column
    # What the collator puts before each text, "" for nothing; None for what the model puts there by itself.
    prompt: str | None = ""
    task: str | None = None  # the route of a Router model, such as "query"; None without routes
    max_length: int | None = None  # tokens per text where training says it beside the model; None for the model's own


def seen_names(dataset: Dataset) -> list[str]:
    """Returns the names in a row as the training loader reads it: a transform may make columns and drop others."""
    if isinstance(dataset, IterableDataset) or dataset.format["type"] != "custom" or not len(dataset):
        return list(dataset.column_names)
    return list(dataset[:1])


def text_names(dataset: Dataset, label_columns: Sequence[str] = ()) -> list[str]:
    """Returns the names of the columns that hold texts, in the order in which a loss sees them.

    As in the host's collator only the first of `label_columns` that is there holds labels; any other is a text to it.
    """
    names = [name for name in seen_names(dataset) if name != "dataset_name"]
    labels = next((name for name in label_columns if name in names), None)
    return [name for name in names if name != labels]


def is_text(kind: Any) -> bool:
    """Returns whether the type of a column, as in `Dataset.features`, is that of texts."""
    return isinstance(kind, Value) and kind.dtype in _TEXT_TYPES


def has_text(column: pa.ChunkedArray) -> np.ndarray:
    """Returns (n,) bool: which of n texts, nulls among them, hold more than blanks."""
    return np.asarray(pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0).to_numpy() > 0)


def text_columns(
    dataset: Dataset,
    *,
    label_columns: Sequence[str] = (),
    prompts: str | Mapping[str, Any] | None = None,
    router_mapping: str | Mapping[str, Any] | None = None,
    dataset_name: str | None = None,
    names: Sequence[str] | None = None,
) -> list[TextColumn]:
    """Returns the one or two columns that are planned on, with the prompts and routes of training.

    Without names the order of the columns decides, as everywhere in sentence-transformers: the first that is not a
    label holds the anchors, the second the positives. A single column is both.

    Raises a ValueError for no column that holds no labels, or names of other columns than those.
    """
    texts = text_names(dataset, label_columns)
    of = f" {dataset_name!r}" if dataset_name is not None else ""
    if not texts:
        raise ValueError(
            f"the training set{of} has the columns {seen_names(dataset)}, expected at least one that holds texts."
        )
    if names is not None and (wrong := [name for name in names if name not in texts]):
        labels = " (a column of labels)" if wrong[0] in seen_names(dataset) else ""
        expected = f"expected one or two of the text columns {texts} of the training set{of}"
        raise ValueError(f"planner_columns: got {wrong[0]!r}{labels}, {expected}.")
    # Unlike a prompt a route is never given for a dataset as a whole: a flat mapping is one of columns.
    nested = isinstance(router_mapping, Mapping) and any(isinstance(part, Mapping) for part in router_mapping.values())
    columns = []
    for name in names or texts[:2]:
        prompt = _for_column(prompts, dataset_name, name)
        route = _for_column(router_mapping or None, dataset_name if nested else None, name)
        columns.append(TextColumn(name, prompt or "", route))
    return columns


def _for_column(setting: str | Mapping[str, Any] | None, dataset_name: str | None, column: str) -> str | None:
    """Resolves a prompt or route as the host's collator does; both may be keyed by dataset, column or both."""
    if isinstance(setting, Mapping) and dataset_name is not None and dataset_name in setting:
        setting = setting[dataset_name]
    if isinstance(setting, Mapping):
        found = setting.get(column)
        return found if isinstance(found, str) else None
    return setting


def read_columns(dataset: Dataset, rows: np.ndarray, names: Sequence[str]) -> list[list[Any]]:
    """Returns a list of m values for each column. Reads whole rows, so that the user's transform sees all of them."""
    values: list[list[Any]] = [[] for _ in names]
    for start in range(0, len(rows), _READ_ROWS):
        block = dataset[rows[start : start + _READ_ROWS]]
        for column, name in zip(values, names, strict=True):
            column.extend(block[name])
    return values


def has_one_text(dataset: Dataset, label_columns: Sequence[str] = ()) -> bool:
    """Returns whether a row's anchor is its positive, as in unsupervised SimCSE, where dropout makes two of one text.

    One column of texts, or two that hold the same text in each of 1,000 rows spread over the dataset.
    """
    names = text_names(dataset, label_columns)
    if len(names) != 2:
        return len(names) == 1
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), 1000)).astype(int))
    anchors, positives = read_columns(dataset, rows, names)
    return all(isinstance(text, str) and text == other for text, other in zip(anchors, positives, strict=True))


def refuse_numbers(dataset: Dataset, names: Sequence[str], dataset_name: str | None = None) -> None:
    """Raises a ValueError if a column that would be embedded as text holds numbers or nothing in its first row."""
    row = dataset[0] if len(dataset) else {}
    of = f" {dataset_name!r}" if dataset_name is not None else ""
    for name in names:
        if name in row and (row[name] is None or isinstance(row[name], (bool, int, float, np.number))):
            raise ValueError(
                f"column {name!r} of the training set{of} holds {row[name]!r}, but every column that is not a label "
                "is embedded as text. If it holds ids or other facts about the rows, remove it with remove_columns, "
                "or name it as group_column if equal values mark rows that are no negatives of each other."
            )
