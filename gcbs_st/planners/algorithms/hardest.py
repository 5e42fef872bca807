"""All products of anchors and positives, in tiles, and the largest of each row; what `tbs` and `random_walk` share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from gcbs_st.planners.base import count_threads

# The products are made in tiles of this many anchors and positives: memory does not grow with n, and the
# tiles, hence every rounding, are the same whatever the number of threads.
_TILE_ROWS, _TILE_COLUMNS = 256, 8192


def find_hardest(
    anchors: np.ndarray, positives: np.ndarray, k: int, *, scale: float | None = None, threads: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each row's k hardest negatives among all rows, in no order, and its log-sum-exp over all rows.

    These are (n, k) int32 row ids, (n, k) float32 products, and (n,) float64 log sum_j exp(scale * product), of length
    0 without a scale. `anchors` and `positives` are (n, d) unit rows, k is 1 to n - 1. Equal products go to the lower
    row ids. Cost: n^2 d multiplications, O(n k) memory beside the tiles. The result does not depend on `threads`.
    """
    n = len(anchors)
    ids, best = np.full((n, k), -1, dtype=np.int32), np.full((n, k), -np.inf, dtype=np.float32)
    totals = np.full(0 if scale is None else n, -np.inf)

    def search(start: int) -> None:
        rows = slice(start, start + _TILE_ROWS)
        left = as_float32(anchors[rows])
        for first in range(0, n, _TILE_COLUMNS):
            products = left @ as_float32(positives[first : first + _TILE_COLUMNS]).T
            _keep_hardest(products, first, start, ids[rows], best[rows])
            if scale is None:
                continue
            products *= scale
            top = products.max(axis=1)
            products -= top[:, None]
            np.exp(products, out=products)
            totals[rows] = np.logaddexp(totals[rows], top + np.log(products.sum(axis=1, dtype=np.float64)))

    # One BLAS thread for each of ours: nested thread pools stall each other.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(count_threads(threads)) as pool:
        list(pool.map(search, range(0, n, _TILE_ROWS)))
    return ids, best, totals


def as_float32(rows: np.ndarray) -> np.ndarray:
    """Returns the rows as a read-only contiguous float32 array, without a copy where they are one.

    Numba compiles anew for each kind of array; this leaves one kind.
    """
    plain = np.ascontiguousarray(rows, dtype=np.float32).view(np.ndarray)
    plain.setflags(write=False)
    return plain


@njit(cache=True, nogil=True, fastmath=True)
def dot(left: np.ndarray, i: int, right: np.ndarray, j: int) -> np.float32:
    """Returns the product of row i of one float32 array and row j of another."""
    total = np.float32(0)
    for t in range(left.shape[1]):
        total += left[i, t] * right[j, t]
    return total


@njit(cache=True, nogil=True)
def push(value: np.float32, row: int, ids: np.ndarray, best: np.ndarray) -> None:
    """Replaces the weakest of a heap of the best by a row, if that is better: higher, or equal with a lower id."""
    if value < best[0] or (value == best[0] and row > ids[0]):
        return
    k, at = len(best), 0
    while 2 * at + 1 < k:
        child = 2 * at + 1
        other = child + 1
        if other < k and (best[other] < best[child] or (best[other] == best[child] and ids[other] > ids[child])):
            child = other
        if value < best[child] or (value == best[child] and row > ids[child]):
            break
        best[at], ids[at] = best[child], ids[child]
        at = child
    best[at], ids[at] = value, row


@njit(cache=True, nogil=True)
def _keep_hardest(products: np.ndarray, first: int, own: int, ids: np.ndarray, best: np.ndarray) -> None:
    """Merges a tile of products, whose first column is row `first` and first row is row `own`, into the heaps."""
    for r in range(products.shape[0]):
        for c in range(products.shape[1]):
            if products[r, c] > best[r, 0] and first + c != own + r:
                push(products[r, c], first + c, ids[r], best[r])
