"""Trees of balanced 2-means: rows in, an order out in which near rows are near one another.

Works on a short projection of the rows, in place, so that every node of a tree is one contiguous slice of
memory and a level costs one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from gcbs_st.planners.base import count_threads

DIMS = 128
# Rows that the axes are found on; sweeps of a split, and rows of a node that take part in them.
AXES_ROWS, SWEEPS, SAMPLE_ROWS = 16384, 10, 2048
_CHUNK_ROWS = 8192
# The nodes of the first levels are split side by side; from then on each thread has a whole subtree to itself.
_SHARED_LEVELS = 4
_SETTINGS = (SWEEPS, SAMPLE_ROWS)


def grow_trees(
    points: np.ndarray, size: int, rng: np.random.Generator, *, trees: int = 1, threads: int = 0
) -> np.ndarray:
    """Returns (m,) int64, an order of the points whose blocks of `size` are leaves of the tightest of several trees.

    `points` are (m, dims) float32 with m a multiple of `size`, and are reordered in place; the order is of their
    places as they were given. `rng` draws the starting pairs. The result does not depend on `threads`, 0 for one per
    core.
    """
    rows, best, most = np.arange(len(points)), np.arange(len(points)), -np.inf
    with ThreadPoolExecutor(count_threads(threads)) as pool:
        for _ in range(trees):
            seed, nodes = int(rng.integers(2**31)), [(0, len(points))]
            for _ in range(_SHARED_LEVELS):
                cuts = [
                    (low, low + (high - low) // size // 2 * size, high) for low, high in nodes if high - low > size
                ]
                list(pool.map(lambda cut, seed=seed: _split_node(points, rows, cut, _SETTINGS, seed), cuts))  # type: ignore[misc]
                nodes = [part for low, middle, high in cuts for part in ((low, middle), (middle, high))]
            list(pool.map(lambda node, seed=seed: _grow(points, rows, node, size, _SETTINGS, seed), nodes))  # type: ignore[misc]
            tightness = _measure_leaves(points, size)
            if tightness > most:
                best, most = rows.copy(), tightness
    return best


class CellTree(NamedTuple):
    """The bisectors of some cells, by which further points find theirs; the root is node 0."""

    directions: np.ndarray  # (cells - 1, dims) float32, of the nodes
    thresholds: np.ndarray  # (cells - 1,) float32: left goes what has a larger product with the direction
    children: np.ndarray  # (cells - 1, 2) int32, the nodes to the left and to the right; ~c is the cell c


def cut_cells(points: np.ndarray, sizes: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, CellTree]:
    """Returns (m,) int64, an order of the points whose blocks are cells of 2-means of given sizes, and their bisectors.

    `points` are (m, dims) float32 and are reordered in place; `sizes`, which may be 0, add up to m. Cost: O(m dims
    log(cells)) time.
    """
    rows, seed, bounds = np.arange(len(points)), int(rng.integers(2**31)), np.cumsum([0, *sizes])
    directions = np.zeros((len(sizes) - 1, points.shape[1]), np.float32)
    thresholds, children = np.zeros(len(directions), np.float32), np.zeros((len(directions), 2), np.int32)
    nodes, used = [(0, len(sizes), 0)], 1
    while nodes:
        first, last, node = nodes.pop()
        if last - first == 1:
            continue
        middle = (first + last) // 2
        cut = (int(bounds[first]), int(bounds[middle]), int(bounds[last]))
        if cut[0] < cut[1] < cut[2]:
            directions[node], thresholds[node] = _split_node(points, rows, cut, _SETTINGS, seed)
        for side, (low, high) in enumerate(((first, middle), (middle, last))):
            children[node, side] = ~low if high - low == 1 else used
            nodes.append((low, high, used))
            used += high - low > 1
    return rows, CellTree(directions, thresholds, children)


@njit(cache=True, nogil=True, fastmath=True)
def find_cells(points: np.ndarray, tree: CellTree) -> np.ndarray:
    """Returns (m,) int32, the cell of each of the (m, dims) float32 points, in O(m dims log(cells))."""
    m, dims = points.shape
    cells = np.zeros(m, np.int32)
    for s in range(m if len(tree.thresholds) else 0):
        node = 0
        while node >= 0:
            total = np.float32(0)
            for c in range(dims):
                total += points[s, c] * tree.directions[node, c]
            node = tree.children[node, 0 if total > tree.thresholds[node] else 1]
        cells[s] = ~node
    return cells


def project_pairs(
    anchors: np.ndarray, positives: np.ndarray, rows: np.ndarray, rng: np.random.Generator, *, threads: int = 0
) -> np.ndarray:
    """Returns (m, min(128, d)) float32: anchor + positive of each of the ascending `rows` on the pairs' main axes.

    The axes are those of `find_axes`. Works in chunks, so that half precision and memory maps are never held as a
    whole float32 copy. Cost: O(m d 128) time, O(128 m) memory. The result does not depend on `threads`.
    """
    points = np.empty((len(rows), min(DIMS, anchors.shape[1])), np.float32)
    whole = len(rows) == len(anchors)
    # One BLAS thread, because sums in another order would be another plan.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(count_threads(threads)) as pool:
        axes = find_axes(anchors, positives, rows, rng)

        def project(start: int) -> None:
            taken = slice(start, start + _CHUNK_ROWS) if whole else rows[start : start + _CHUNK_ROWS]
            pairs = np.add(anchors[taken], positives[taken], dtype=np.float32)
            points[start : start + _CHUNK_ROWS] = pairs if axes is None else pairs @ axes

        list(pool.map(project, range(0, len(rows), _CHUNK_ROWS)))
    return points


def find_axes(
    anchors: np.ndarray, positives: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """Returns (d, 128) float32, the main axes of anchor + positive of the rows, or None where d is at most 128.

    They are the leading eigenvectors of the covariance of 16,384 of the rows, drawn by `rng`. Cost: O(16384 d^2).
    """
    if anchors.shape[1] <= DIMS:
        return None
    picked = np.sort(rng.choice(rows, min(len(rows), AXES_ROWS), replace=False))
    drawn = anchors[picked].astype(np.float32) + positives[picked].astype(np.float32)
    drawn -= drawn.mean(axis=0)
    return leading_axes(drawn.T @ drawn)


def leading_axes(covariance: np.ndarray) -> np.ndarray:
    """Returns the (d, 128) eigenvectors of the largest eigenvalues of a (d, d) covariance, the largest first."""
    return np.ascontiguousarray(np.linalg.eigh(covariance)[1][:, ::-1][:, :DIMS])


@njit(cache=True, nogil=True, fastmath=True)
def _measure_leaves(points: np.ndarray, size: int) -> float:
    """Returns the mean squared norm of the sum of each leaf's points; larger is tighter."""
    total, dims = 0.0, points.shape[1]
    summed = np.empty(dims, np.float32)
    for leaf in range(len(points) // size):
        summed[:] = 0
        for s in range(leaf * size, (leaf + 1) * size):
            for c in range(dims):
                summed[c] += points[s, c]
        for c in range(dims):
            total += np.float64(summed[c]) * summed[c]
    return total / len(points)


@njit(cache=True, nogil=True)
def _select(values: np.ndarray, rank: int) -> float:
    """Returns the value of a rank, 0 being the largest; the values are reordered (Hoare's quickselect)."""
    low, high = 0, len(values) - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return values[rank]


@njit(cache=True, nogil=True, fastmath=True)
def _find_direction(points: np.ndarray, half: int, settings: tuple, state: np.uint64) -> np.ndarray:  # type: ignore[type-arg]
    """Returns the difference of the two balanced means after some sweeps over a sample of the points."""
    m, dims = points.shape
    size = min(m, settings[1])
    stride = m // size
    cut = max(1, min(size - 1, size * half // m))
    direction, scores, ranked = np.empty(dims, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    first, second = np.int64(state % np.uint64(m)), np.int64((state >> np.uint64(20)) % np.uint64(m))
    for c in range(dims):
        direction[c] = points[first, c] - points[second, c]
    for _ in range(settings[0]):
        for s in range(size):
            total = np.float32(0)
            for c in range(dims):
                total += points[s * stride, c] * direction[c]
            scores[s] = ranked[s] = total
        threshold = _select(ranked, cut)
        direction[:] = 0
        for s in range(size):
            sign = np.float32(1.0 / cut) if scores[s] > threshold else np.float32(-1.0 / (size - cut))
            for c in range(dims):
                direction[c] += sign * points[s * stride, c]
    return direction


@njit(cache=True, nogil=True)
def _take_largest(scores: np.ndarray, half: int) -> tuple:  # type: ignore[type-arg]
    """Returns a mask of exactly `half` of the largest scores, of equal ones the first, and the largest that is left."""
    threshold = _select(scores.copy(), half)
    ties = half
    for score in scores:
        ties -= score > threshold
    taken = np.empty(len(scores), np.bool_)
    for s in range(len(scores)):
        tied = scores[s] == threshold and ties > 0
        ties -= tied
        taken[s] = tied or scores[s] > threshold
    return taken, threshold


@njit(cache=True, nogil=True, fastmath=True)
def _split_node(points: np.ndarray, rows: np.ndarray, cut: tuple, settings: tuple, seed: int) -> tuple:  # type: ignore[type-arg]
    """Reorders points and rows from cut[0] to cut[2] so that one side of the bisector comes before cut[1].

    Returns the bisector's direction and the largest product with it on the other side.
    """
    low, half, m, dims = cut[0], cut[1] - cut[0], cut[2] - cut[0], points.shape[1]
    # A state that depends on the node's place alone, so that threads may take the nodes in any order.
    state = np.uint64(seed) + np.uint64(low) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(cut[2])
    for _ in range(3):
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    direction = _find_direction(points[low : cut[2]], half, settings, state)
    scores = np.empty(m, np.float32)
    for s in range(m):
        total = np.float32(0)
        for c in range(dims):
            total += points[low + s, c] * direction[c]
        scores[s] = total
    goes_left, threshold = _take_largest(scores, half)
    j = m - 1
    for s in range(half):
        if goes_left[s]:
            continue
        while not goes_left[j]:
            j -= 1
        rows[low + s], rows[low + j] = rows[low + j], rows[low + s]
        for c in range(dims):
            points[low + s, c], points[low + j, c] = points[low + j, c], points[low + s, c]
        j -= 1
    return direction, threshold


@njit(cache=True, nogil=True)
def _grow(points: np.ndarray, rows: np.ndarray, node: tuple, size: int, settings: tuple, seed: int) -> None:  # type: ignore[type-arg]
    """Splits a node in place, down to leaves of `size` rows."""
    stack = [(node[0], node[1])]
    while len(stack) > 0:
        low, high = stack.pop()
        if high - low > size:
            middle = low + (high - low) // size // 2 * size
            _split_node(points, rows, (low, middle, high), settings, seed)
            stack.append((low, middle))
            stack.append((middle, high))
