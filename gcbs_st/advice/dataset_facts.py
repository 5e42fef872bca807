"""What a dataset's texts tell without a model: rows that recur, texts that stand in several rows, columns of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value

from gcbs_st.batches.shared_values import SharedValues
from gcbs_st.rows.columns import has_one_text, has_text, is_text

# Columns that the host takes for labels of a row.
LABELS = ("label", "labels", "score", "scores")
# A column says which rows belong together if at least this share of the rows have a companion in it.
_LEAST_REPEATED = 0.05


@dataclass(frozen=True)
class DatasetFacts:
    """What all rows of a dataset show."""

    rows: int  # with text in each column
    columns: tuple[str, ...]  # of texts: anchors, positives, negatives
    label: str | None  # a column that the host takes for labels
    blank_rows: int  # rows that lack a text, left out of all other figures
    duplicate_rows: int  # rows with the same texts as an earlier one
    shared_rows: int  # rows that share a text, as anchor or positive, with another
    widest_text: str | None  # the text that stands in most rows, None where each stands in one
    widest_rows: int  # in which it stands
    one_text: bool  # anchor and positive are one text, of which dropout makes a pair
    group_columns: tuple[str, ...]  # further columns whose values recur as those of groups do
    unused_texts: tuple[str, ...]  # further columns of texts, which the trainer would train on as negatives

    @property
    def has_negatives(self) -> bool:
        """Whether rows have negatives of their own."""
        return len(self.columns) > 2


def default_text_columns(dataset: Dataset) -> list[str]:
    """Returns the columns to train on: `anchor` and `positive`, or else the first two of texts, and `negative...`.

    Raises a ValueError if there is none.
    """
    texts = [name for name, kind in dataset.features.items() if is_text(kind) and name not in LABELS]
    negatives = [name for name in texts if name.startswith("negative")]
    others = [name for name in texts if name not in negatives]
    pair = ["anchor", "positive"] if {"anchor", "positive"} <= set(others) else others[:2]
    if not pair:
        raise ValueError(
            f"got the columns {', '.join(dataset.column_names)}, expected one or more that hold texts: --columns names them"
        )
    return [*pair, *negatives]


def check_columns(dataset: Dataset, names: Sequence[str]) -> None:
    """Raises a ValueError unless each column is there once and holds texts."""
    if len(set(names)) != len(names):
        raise ValueError(f"got the columns {', '.join(names)}, expected each once; one column alone is both sides")
    for name in names:
        if name not in dataset.column_names:
            raise ValueError(f"got the column {name!r}, expected some of {', '.join(dataset.column_names)}")
        if not is_text(dataset.features[name]):
            raise ValueError(
                f"column {name!r} holds {dataset.features[name]}, expected texts: choose others with --columns"
            )


def with_texts(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """Returns the rows that have a text, not only blanks, in each of the columns."""
    table: pa.Table = dataset.with_format("arrow").select_columns(list(columns))[:]
    usable = np.ones(len(dataset), bool)
    for name in columns:
        usable &= has_text(table[name])
    return dataset if usable.all() else dataset.select(np.flatnonzero(usable))


def find_dataset_facts(dataset: Dataset, columns: Sequence[str], batch_size: int) -> tuple[DatasetFacts, Dataset]:
    """Returns the facts of a dataset's texts, and its rows without those that lack one.

    `columns` hold the anchors, the positives, then negatives; one column is both sides. Raises a ValueError for columns
    that are not there or hold no texts, and if fewer than two rows are left.
    """
    check_columns(dataset, columns)
    rows = with_texts(dataset, columns)
    if len(rows) < 2:
        raise ValueError(f"got {len(rows)} rows with text in {', '.join(columns)}, expected at least 2")
    texts = rows.select_columns(list(columns))
    table: pa.Table = texts.with_format("arrow")[:]
    shared = SharedValues.from_dataset(texts, columns)
    widest, count = widest_text(shared, texts)
    return DatasetFacts(
        rows=len(rows),
        columns=tuple(columns),
        label=next((name for name in LABELS if name in dataset.column_names), None),
        blank_rows=len(dataset) - len(rows),
        duplicate_rows=len(rows) - table.group_by(list(columns)).aggregate([]).num_rows,
        shared_rows=int((np.diff(shared.held.starts) > 0).sum()),
        widest_text=widest,
        widest_rows=count,
        one_text=has_one_text(texts),
        group_columns=tuple(_group_columns(rows, columns, len(rows) // batch_size)),
        unused_texts=tuple(
            name for name, kind in rows.features.items() if is_text(kind) and name not in (*columns, *LABELS)
        ),
    ), rows


def widest_text(shared: SharedValues, texts: Dataset) -> tuple[str | None, int]:
    """Returns the text that most rows share, and in how many rows it stands; None and 1 where no text recurs."""
    if not shared:
        return None, 1
    holders = np.bincount(shared.held.values)
    value = int(holders.argmax())
    row = int(np.searchsorted(shared.held.starts, np.flatnonzero(shared.held.values == value)[0], side="right") - 1)
    return str(shared.name_widest(row, list(texts[row].values()))[1]), int(holders[value])


def _group_columns(dataset: Dataset, texts: Sequence[str], batches: int) -> list[str]:
    """Columns beside the texts and labels of which many values recur, none in more rows than there are batches."""
    found = []
    for name, kind in dataset.features.items():
        if name in texts or name in LABELS or not isinstance(kind, Value) or kind.dtype.startswith("float"):
            continue
        counts = pc.value_counts(dataset.with_format("arrow").select_columns([name])[:][name].combine_chunks())
        known = counts.filter(pc.is_valid(counts.field("values"))).field("counts").to_numpy()
        recurring = known[known > 1]
        if len(recurring) and recurring.sum() >= _LEAST_REPEATED * len(dataset) and recurring.max() <= batches:
            found.append(name)
    return found
