"""Which in-batch negatives are none for what is known of the rows: texts, groups, listed right answers.

In: for the rows of a training set, what each holds (`RowIdentities`), and the ids of a batch. Out: which candidates of
a block of rows share something with them. Nothing here looks at scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# How a row holds a value: as its anchor, positive or group; as a listed right answer; as the text of the column of this
# number, 2 for the first one of negatives.
OWN, LISTED, FIRST_NEGATIVE = 0, 1, 2

# Pairs that are found at a time: a batch may be of one group, and indices take eight times the memory of the mask.
_PAIRS = 2**22


class RowIdentities:
    """What each of n rows holds that another row, or another text of its own, holds as well.

    Two rows are no negatives of each other if they share a value and at least one of them holds it as its anchor,
    positive or group; and a text of a column of negatives is no negative of a row that holds it otherwise.

    Args:
        count: n.
        rows: (e,) integers, the rows that hold something.
        values: (e,) integers, what they hold, such as hashes; equal numbers are equal values.
        holds: (e,) integers, how: `OWN`, `LISTED`, or the number of a column of negatives, `FIRST_NEGATIVE` or more.

    Example:
        >>> rows, values, holds = np.array([0, 1, 2, 3]), np.array([7, 7, 8, 9]), np.zeros(4, int)
        >>> batch = RowIdentities(4, rows, values, holds).of(np.array([1, 3, 0]))
        >>> batch.related(0, 1, torch.device("cpu")).tolist()
        [[True, False, True]]
    """

    def __init__(self, count: int, rows: np.ndarray, values: np.ndarray, holds: np.ndarray) -> None:
        _, numbers = np.unique(values, return_inverse=True)
        # What is held once alone is shared with nobody.
        kept = (np.bincount(numbers.ravel(), minlength=1) > 1)[numbers.ravel()]
        order = np.argsort(rows[kept], kind="stable")
        self.values = numbers.ravel()[kept][order].astype(np.int64)
        self.holds = holds[kept][order].astype(np.int16)
        self.starts = np.searchsorted(rows[kept][order], np.arange(count + 1))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, ids: np.ndarray) -> BatchIdentities:
        """Returns what the rows of a batch hold, from their (b,) ids in 0..n-1; others raise a ValueError."""
        if len(ids) and (ids.min() < 0 or ids.max() >= len(self)):
            raise ValueError(f"row_ids: got {ids.min()} to {ids.max()}, expected ids below {len(self)}.")
        counts = np.diff(self.starts)[ids]
        places = np.repeat(np.arange(len(ids)), counts)
        entries = np.arange(len(places)) + np.repeat(self.starts[ids] - np.cumsum(counts) + counts, counts)
        return BatchIdentities(len(ids), places, self.values[entries], self.holds[entries])


@dataclass(frozen=True, eq=False)
class BatchIdentities:
    """What the b rows of a batch hold, which may be the rows of all ranks."""

    count: int  # b
    places: np.ndarray  # (e,) of the rows in the batch, ascending
    values: np.ndarray  # (e,)
    holds: np.ndarray  # (e,), see `RowIdentities`

    def related(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Returns (stop - start, b) bool: which rows the rows at these places are no negatives of, themselves among them."""
        mask = torch.zeros(stop - start, self.count, dtype=torch.bool, device=device)
        own, listed = self.holds == OWN, self.holds == LISTED
        for mine, theirs in ((own, own | listed), (listed, own)):
            self._mark(mask.view(-1), start, stop, mine, theirs, self.places)
        return mask

    def false_texts(self, start: int, stop: int, columns: int, device: torch.device) -> Tensor:
        """Returns (stop - start, columns * b) bool: which texts of the columns of negatives are none of these rows'.

        They stand column by column. Raises a ValueError if rows hold texts of more columns than there are.
        """
        most = int(self.holds.max(initial=0)) - FIRST_NEGATIVE + 1
        if most > columns:
            raise ValueError(
                f"got embeddings of {columns} columns of negatives, but the training set has {most}: which texts they "
                "are of is not known. A collator must keep the columns if the loss masks by identity."
            )
        mask = torch.zeros(stop - start, columns * self.count, dtype=torch.bool, device=device)
        places = (self.holds.astype(np.int64) - FIRST_NEGATIVE) * self.count + self.places
        self._mark(mask.view(-1), start, stop, self.holds < FIRST_NEGATIVE, self.holds >= FIRST_NEGATIVE, places)
        return mask

    def _mark(  # noqa: PLR0913 - two callers, which differ in the last three
        self, mask: Tensor, start: int, stop: int, mine: np.ndarray, theirs: np.ndarray, places: np.ndarray
    ) -> None:
        """Sets a flattened mask, in place, where entries of a block's rows have the value of entries at `places`."""
        block = mine & (self.places >= start) & (self.places < stop)
        rows, columns, width = self.places[block] - start, places[theirs], len(mask) // max(1, stop - start)
        for left, right in _joined(self.values[block], self.values[theirs]):
            mask[torch.from_numpy(rows[left] * width + columns[right]).to(mask.device)] = True


def _joined(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the indices of all pairs of equal values, by sorting the right ones: O((l + r) log r) and the pairs."""
    order = np.argsort(right, kind="stable")
    begin, end = (np.searchsorted(right[order], left, side=side) for side in ("left", "right"))
    counts = end - begin
    before = np.concatenate([[0], np.cumsum(counts)])
    first = 0
    while first < len(left) and before[first] < before[-1]:
        last = max(first + 1, int(np.searchsorted(before, before[first] + _PAIRS, side="right")) - 1)
        repeated = np.repeat(np.arange(first, last), counts[first:last])
        within = np.arange(len(repeated)) - (before[repeated] - before[first])
        yield repeated, order[begin[repeated] + within]
        first = last
