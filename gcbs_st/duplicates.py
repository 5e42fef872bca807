"""Keeps rows that share a value out of one batch: an order in, an order whose batches hold no value twice out.

A value is a text, which is what sentence-transformers means by NO_DUPLICATES (values compare as strings,
over all columns that are not labels, and across columns), or a group, such as the photo that two captions
describe. Unlike there every batch stays full, so a row that must leave a batch changes places with a row
of a near one, where a plan puts similar rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset

_READ_ROWS = 10_000


class SharedValues:
    """The values that two or more rows share, and the rows that hold them.

    Example:
        >>> values = SharedValues(np.array([[1, 10], [1, 11], [2, 12], [3, 13]]))
        >>> values.separate(np.array([0, 1, 2, 3]), 2).tolist()
        [0, 2, 1, 3]
    """

    def __init__(self, values: np.ndarray) -> None:
        """Takes the values of all rows.

        Args:
            values: (n, c) integers; equal numbers are equal values, in whichever column they stand.
        """
        n = len(values)
        ids, inverse = np.unique(values, return_inverse=True)
        inverse = inverse.reshape(n, -1)
        # A row may hold a value in two columns (the two views of one sentence) without being in its own way.
        by_row = np.sort(inverse, axis=1)
        repeated = np.zeros_like(by_row, dtype=bool)
        repeated[:, 1:] = by_row[:, 1:] == by_row[:, :-1]
        holders = np.bincount(by_row[~repeated], minlength=len(ids))
        self._of_row: dict[int, frozenset[int]] = {
            int(row): frozenset(int(value) for value in by_row[row] if holders[value] > 1)
            for row in np.flatnonzero((holders[by_row] > 1).any(axis=1))
        }
        self._flat = np.where((holders[by_row] > 1) & ~repeated, by_row, -1)
        self._most_holders = int(holders.max(initial=0))

    @classmethod
    def from_dataset(
        cls, dataset: Dataset, exclude: Sequence[str] = (), *, texts: bool = True, groups: Sequence[Any] | None = None
    ) -> SharedValues:
        """Returns the shared values of a dataset's rows.

        Args:
            dataset: n rows; its format and transform apply.
            exclude: columns that do not count, such as labels.
            texts: whether the columns' texts count.
            groups: (n,) values of any kind, or None; rows of one group share a value.

        Returns:
            The values, compared by a 64-bit hash of their strings.
        """
        parts = [_hash_columns(dataset, exclude)] if texts else []
        if groups is not None:
            # Another seed than the texts', so that group 7 is not the text "7".
            parts.append(
                np.array([[xxhash.xxh64_intdigest(str(group).encode(), seed=1)] for group in groups], dtype=np.uint64)
            )
        return cls(np.hstack(parts))

    def draw(self, order: np.ndarray, batches: int, batch_size: int) -> np.ndarray:
        """Returns the first rows of an order that can fill the batches, no value in more rows than batches.

        Args:
            order: (n,) all rows.
            batches: how many batches are to be filled.
            batch_size: rows a batch.

        Returns:
            (batches * batch_size,) rows.

        Raises:
            ValueError: too many rows share their values.
        """
        wanted = batches * batch_size
        if self._most_holders <= batches:
            return order[:wanted]
        taken: list[int] = []
        held: dict[int, int] = {}
        for row in order.tolist():
            values = self._of_row.get(row, frozenset())
            if all(held.get(value, 0) < batches for value in values):
                taken.append(row)
                for value in values:
                    held[value] = held.get(value, 0) + 1
            if len(taken) == wanted:
                return np.array(taken, dtype=order.dtype)
        raise ValueError(
            f"group_column or batch_sampler=no_duplicates: one value stands in {self._most_holders} of {len(order)} rows, but an epoch "
            f"has only {batches} full batches of {batch_size}, each of which may hold it once. De-duplicate the "
            "training set, lower per_device_train_batch_size, or do without."
        )

    def separate(self, order: np.ndarray, batch_size: int) -> np.ndarray | None:
        """Returns the order with rows exchanged between batches until no batch holds a value twice.

        Rows that share nothing stay where they are, unless they change places with one that has to move;
        the nearest batch that can take it is chosen. O(m) plus a search for each row that has to move.

        Args:
            order: (m,) rows, m a multiple of `batch_size`.
            batch_size: rows a batch.

        Returns:
            The new order, or None if some row found no place.
        """
        batches = order.reshape(-1, batch_size).copy()
        held = [self._values_of(batch) for batch in batches] if self._of_row else []
        for batch, slot in self._conflicts(batches):
            if not self._move(batches, held, batch, slot):
                return None
        return batches.ravel()

    def _values_of(self, batch: np.ndarray) -> dict[int, int]:
        held: dict[int, int] = {}
        for row in batch.tolist():
            for value in self._of_row.get(row, ()):
                held[value] = held.get(value, 0) + 1
        return held

    def _conflicts(self, batches: np.ndarray) -> list[tuple[int, int]]:
        """(batch, slot) of each row that holds a value which an earlier row of its batch holds."""
        values = self._flat[batches.ravel()]
        width = values.shape[1]
        slots = np.repeat(np.arange(batches.size), width)
        keys = values.ravel()
        slots, keys = slots[keys >= 0], keys[keys >= 0]
        of_batch = slots // batches.shape[1]
        by_value = np.lexsort((slots, keys, of_batch))
        same = (keys[by_value][1:] == keys[by_value][:-1]) & (of_batch[by_value][1:] == of_batch[by_value][:-1])
        late = np.unique(slots[by_value][1:][same])
        return [(int(slot) // batches.shape[1], int(slot) % batches.shape[1]) for slot in late]

    def _move(self, batches: np.ndarray, held: list[dict[int, int]], batch: int, slot: int) -> bool:
        """Exchanges the row with one of the nearest batch where neither is in the way; False if there is none."""
        row = int(batches[batch, slot])
        values = self._of_row[row]
        if all(held[batch][value] == 1 for value in values):
            return True  # what stood in its way has left the batch meanwhile
        home = {value for value, count in held[batch].items() if count > (value in values)}
        for distance in range(1, len(batches)):
            for other in (batch + distance, batch - distance):
                if not 0 <= other < len(batches):
                    continue
                shared = {value for value in values if value in held[other]}
                for other_slot, candidate in enumerate(batches[other].tolist()):
                    theirs = self._of_row.get(candidate, frozenset())
                    # The candidate must take with it all that the row would meet, and meet nothing at home.
                    if theirs & home or any(held[other][value] > (value in theirs) for value in shared):
                        continue
                    batches[batch, slot], batches[other, other_slot] = candidate, row
                    held[batch], held[other] = self._values_of(batches[batch]), self._values_of(batches[other])
                    return True
        return False


def _hash_columns(dataset: Dataset, exclude: Sequence[str]) -> np.ndarray:
    """(n, c) hashes of the texts of all columns that count."""
    rows = []
    for start in range(0, len(dataset), _READ_ROWS):
        block = dataset[start : start + _READ_ROWS]
        columns = [block[name] for name in block if name not in {*exclude, "dataset_name"}]
        rows += [[xxhash.xxh64_intdigest(str(value).encode()) for value in row] for row in zip(*columns, strict=True)]
    return np.array(rows, dtype=np.uint64).reshape(len(dataset), -1)
