"""Batches that grow row by row: weights within a pool of rows in, batches out, each the greedy choice of the pool.

The quantity is sum_{q in S} log Z_q with Z_q = 1 + sum_{j in S} w_qj: what the gap is made of, row q's own positive
being 1. A row that is taken gains a Z of its own, which others taken before let grow, and lets theirs grow, the less so
the larger they are. So the second part of what a row is worth only ever falls: it need not be computed again until it
could decide (lazy evaluation, Minoux 1978), and the choice is that of the plain greedy algorithm.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def grow_batches(weights: np.ndarray, size: int, count: int) -> np.ndarray:
    """Returns (count, size) int64 rows of a pool, no row twice: batches, each grown from the first row that is left.

    `weights` are (p, p) float32 w_qj, at least 0, 0 on the diagonal and where j counts for nothing to q; `count` times
    `size` is at most p. Of rows that are worth the same the first one is taken. Cost: O(count size p) time, plus
    O(size) for each of the rows that have to be looked at again.
    """
    p = len(weights)
    left = np.ones(p, np.bool_)
    batches = np.empty((count, size), np.int64)
    z, held, lent, fresh = np.empty(p), np.empty(p), np.empty(p), np.zeros(p, np.int64)
    first = 0
    for number in range(count):
        while not left[first]:
            first += 1
        batch = batches[number]
        batch[0], left[first], z[first] = first, False, 1.0
        for c in range(p):
            held[c] = lent[c] = 0.0
        for taken in range(1, size):
            _meet(weights, left, batch[taken - 1], z, held, lent)
            best = _find_best(weights, left, batch[:taken], z, held, lent, fresh)
            batch[taken], left[best] = best, False
            z[best] = 1.0 + held[best]
            for t in range(taken):
                z[batch[t]] += weights[batch[t], best]
        for c in range(p):
            fresh[c] = 0
    return batches


@njit(cache=True, nogil=True)
def _meet(
    weights: np.ndarray, left: np.ndarray, newest: int, z: np.ndarray, held: np.ndarray, lent: np.ndarray
) -> None:
    """Adds to each row that is left what it would hold and lend for the newest member of the batch."""
    for c in range(len(left)):
        if left[c]:
            held[c] += weights[c, newest]
            lent[c] += math.log1p(weights[newest, c] / z[newest])


@njit(cache=True, nogil=True)
def _find_best(
    weights: np.ndarray,
    left: np.ndarray,
    batch: np.ndarray,
    z: np.ndarray,
    held: np.ndarray,
    lent: np.ndarray,
    fresh: np.ndarray,
) -> int:
    """Returns the row that is worth most; `lent` of all others is an upper bound of what it is now."""
    worth = np.full(len(left), -1.0)
    for c in range(len(left)):
        if left[c]:
            worth[c] = math.log1p(held[c]) + lent[c]
    while True:
        best = int(np.argmax(worth))
        if fresh[best] == len(batch):
            return best
        exact = 0.0
        for t in range(len(batch)):
            exact += math.log1p(weights[batch[t], best] / z[batch[t]])
        lent[best], fresh[best] = exact, len(batch)
        worth[best] = math.log1p(held[best]) + exact
