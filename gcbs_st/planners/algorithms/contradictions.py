"""Rows that are no negatives of each other: what a guarded loss masks, and what must not share a batch at all.

In: a margin, by whose scores it goes, and the values that rows share. Out: which pairs count for nothing, for the
search for neighbours (`Barred`) and for the measures (`Contradictions.among`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy.sparse import csr_array


class Barred(NamedTuple):
    """Which of m rows are no negatives of a row, in the order in which a search sees them."""

    below: np.ndarray  # (m,) float32: a row's negatives score at most this, by the rows that are searched
    left: np.ndarray  # (m, d') float32 anchors that are judged by, d' 0 where the searched ones are
    right: np.ndarray  # (m, d') float32 positives that are judged by
    limits: np.ndarray  # (m,) float32: a row's negatives score at most this, by the rows that are judged by
    starts: np.ndarray  # (m + 1,) int64, of each row's values
    values: np.ndarray  # int32, ascending within a row; rows that share one are no negatives of each other
    strong: np.ndarray  # bool: of a shared value at least one of the two has to hold it strongly


@dataclass(frozen=True, eq=False)
class Contradictions:
    """Which of n rows are no negatives of each other; a value object that planners and measures take.

    Row j is no negative of row i if it scores above `limit_scores` of i's own positive, or if the two share a value: a
    text, a group.

    Attributes:
        margin: share of an anchor's own positive's score above which a row is no negative; None for no such rule.
        judge: (n, d') anchors and positives, unit rows, whose scores that goes by; None for those that are planned on.
        starts: (n + 1,) int64, of each row's `values`; None where rows share none.
        values: (e,) int32, ascending within a row.
        strong: (e,) bool: of a shared value at least one of the two rows has to hold it strongly.
    """

    margin: float | None = None
    judge: Sequence[np.ndarray] | None = None
    starts: np.ndarray | None = None
    values: np.ndarray | None = None
    strong: np.ndarray | None = None

    def __bool__(self) -> bool:
        """Whether any rows can contradict each other."""
        return self._has_margin() or (self.values is not None and len(self.values) > 0)

    def _has_margin(self) -> bool:
        return self.margin is not None and not np.isinf(self.margin)

    def of(self, rows: np.ndarray) -> Contradictions:
        """Returns the contradictions of the (m,) rows alone, row 0 of which is the first one."""
        judge = None if self.judge is None else [side[rows] for side in self.judge]
        if self.starts is None:
            return Contradictions(self.margin, judge)
        return Contradictions(self.margin, judge, *self._shared(rows))

    def barred(self, anchors: np.ndarray, positives: np.ndarray, order: np.ndarray) -> Barred:
        """Returns what a search among the (m,) rows of `order` needs; the (n, d) arrays are those that it goes by."""
        m, mine = len(order), self.of(order)
        everything = np.full(m, np.inf, np.float32)
        below, limits, left, right = everything, everything, np.empty((m, 0), np.float32), np.empty((m, 0), np.float32)
        if mine._has_margin() and mine.judge is None:
            assert mine.margin is not None
            below = limit_scores(_own_scores(anchors, positives, order), mine.margin)
        elif mine._has_margin() and mine.judge is not None:
            assert mine.margin is not None
            left, right = (np.ascontiguousarray(side, np.float32) for side in (mine.judge[0], mine.judge[-1]))
            limits = limit_scores(np.einsum("ij,ij->i", left, right), mine.margin)
        return Barred(below, left, right, limits, *self._shared(order))

    def among(self, rows: np.ndarray, columns: np.ndarray, scores: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Returns (m, k) bool: which of the (k,) columns are no negatives of the (m,) rows, themselves left out.

        `scores` are (m, k) cosines of the rows' anchors with the columns' positives, `own` (m,) with their own ones.
        """
        found = np.zeros(scores.shape, bool)
        if self._has_margin():
            assert self.margin is not None
            if self.judge is not None:
                left = self.judge[0][rows].astype(np.float32)
                own = np.einsum("ij,ij->i", left, self.judge[-1][rows].astype(np.float32))
                scores = left @ self.judge[-1][columns].astype(np.float32).T
            found |= scores > limit_scores(own, self.margin)[:, None]
        if self.starts is not None and self.values is not None and len(self.values):
            mine, theirs = (self._incidence(which) for which in (rows, columns))
            meets = mine[0] @ theirs[1].T + mine[1] @ theirs[0].T
            found |= meets.toarray() > 0
        found[rows[:, None] == columns[None, :]] = False
        return found

    def _shared(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts, values and strength of what the (m,) rows hold."""
        if self.starts is None or self.values is None or self.strong is None:
            return np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, bool)
        counts = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        entries = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], counts)
        return starts, self.values[entries].astype(np.int32), self.strong[entries].astype(bool)

    def _incidence(self, rows: np.ndarray) -> tuple[csr_array, csr_array]:
        """Rows by the values that they hold, and by those that they hold strongly."""
        starts, values, strong = self._shared(rows)
        assert self.values is not None
        shape = (len(rows), int(self.values.max()) + 1)
        held = csr_array((np.ones(len(values), np.float32), values, starts), shape=shape)
        return held, csr_array((strong.astype(np.float32), values, starts), shape=shape)


def limit_scores(own: np.ndarray, margin: float) -> np.ndarray:
    """Returns (m,) float32 scores above which a row is no negative, as `gcbs_st.losses.guard.false_negative_threshold`.

    >>> limit_scores(np.array([0.8, 0.0, -0.8]), 0.75).tolist()
    [0.6000000238418579, 0.0, -1.0]
    """
    own = own.astype(np.float32)
    return np.asarray(own - np.float32(1 - margin) * np.abs(own), np.float32)


def _own_scores(anchors: np.ndarray, positives: np.ndarray, order: np.ndarray) -> np.ndarray:
    own = np.empty(len(order), np.float32)
    for start in range(0, len(order), 8192):
        rows = order[start : start + 8192]
        own[start : start + len(rows)] = np.einsum(
            "ij,ij->i", anchors[rows].astype(np.float32), positives[rows].astype(np.float32)
        )
    return own


@njit(cache=True, nogil=True)
def is_barred(barred: Barred, row: int, other: int) -> bool:
    """Returns whether `other` is no negative of `row` for what the searched scores do not show."""
    if barred.left.shape[1]:
        score = np.float32(0)
        for axis in range(barred.left.shape[1]):
            score += barred.left[row, axis] * barred.right[other, axis]
        if score > barred.limits[row]:
            return True
    mine, theirs = barred.starts[row], barred.starts[other]
    while mine < barred.starts[row + 1] and theirs < barred.starts[other + 1]:
        if barred.values[mine] == barred.values[theirs]:
            if barred.strong[mine] or barred.strong[theirs]:
                return True
            mine += 1
        elif barred.values[mine] < barred.values[theirs]:
            mine += 1
        else:
            theirs += 1
    return False
