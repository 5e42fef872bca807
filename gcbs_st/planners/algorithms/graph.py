"""Who is most similar to whom: embeddings and an order of the rows in, a sparse weighted neighbour graph out.

Anchor i points to the rows whose positives are nearest to it. An exact search over all pairs costs more than a whole
plan, so by default each cell of near rows looks only into the cells nearest to it.

Notation: anchors and positives are (n, d) unit rows, `order` is (m,) row ids; row r of a result is row order[r] of the
embeddings and neighbours are places in the order too; k neighbours of each row; s_ij = scale * a_i . p_j; B(i) the
batch of i and Z_i = sum_{j in B(i)} exp(s_ij). No result depends on `threads`, of which 0 means one per core.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import faiss
import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from gcbs_st.planners.algorithms.contradictions import Barred, Contradictions, is_barred
from gcbs_st.planners.base import count_threads

CELL_ROWS = 256
_BACKGROUND_ROWS = 512
_CHUNK_ROWS = 8192
# Past e^60 "together at any price" is all that can be said, and float32 ends at e^88.
MOST_NATS = 60.0


class Affinity(NamedTuple):
    """A weighted neighbour graph in both directions, row by row, on which log Z can be computed exactly.

    Row i touches ids[starts[i]:starts[i + 1]]. With such a row c in its batch, Z_i grows by gives[e] and Z_c
    by takes[e], each in units of what Z of that row holds without any neighbour, and `costs[e]` of the two
    ordered pairs (i, c) and (c, i) are pairs that should be kept apart.
    """

    starts: np.ndarray  # (m + 1,) int64
    ids: np.ndarray  # (entries,) int32
    gives: np.ndarray  # (entries,) float32, at least 0
    takes: np.ndarray  # (entries,) float32, at least 0
    costs: np.ndarray  # (entries,) int8, 0 to 2


def find_in_cells(  # noqa: PLR0913 - a keyword for each choice of the search
    anchors: np.ndarray,
    positives: np.ndarray,
    order: np.ndarray,
    k: int,
    *,
    probes: int = 24,
    threads: int = 0,
    contradictions: Contradictions | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the (m, k) int32 places of each row's nearest positives and their (m, k) float32 cosines, falling.

    The order, in which near rows lie near one another, is cut into cells of 256 rows; a cell looks into the `probes`
    cells whose mean positive is most similar to its mean anchor (all of them make the search exact). Searching cells
    and not rows is our choice: it makes the search a matrix product. A row is not its own neighbour, nor is one that
    is no negative of it by the `contradictions`; places are -1 and cosines -inf where fewer than k were found. Cost:
    O(m 256 probes d) time, O(m (2 d + k)) memory.
    """
    m, d = len(order), anchors.shape[1]
    count = -(-m // CELL_ROWS)
    left, right = np.empty((m, d), np.float32), np.empty((m, d), np.float32)
    left_means, right_means = np.empty((count, d), np.float32), np.empty((count, d), np.float32)
    best_ids, best = np.full((m, k), -1, np.int32), np.full((m, k), -np.inf, np.float32)
    places = np.arange(m, dtype=np.int32)
    barred = (contradictions or Contradictions()).barred(anchors, positives, order)

    def gather(cell: int) -> None:
        span = slice(cell * CELL_ROWS, (cell + 1) * CELL_ROWS)
        left[span], right[span] = anchors[order[span]], positives[order[span]]
        left_means[cell], right_means[cell] = left[span].mean(axis=0), right[span].mean(axis=0)

    def search(cell: int) -> None:
        span = slice(cell * CELL_ROWS, (cell + 1) * CELL_ROWS)
        near = np.argsort(-(right_means @ left_means[cell]), kind="stable")[:probes]
        for other in np.sort(near):
            theirs = slice(other * CELL_ROWS, (other + 1) * CELL_ROWS)
            scores = left[span] @ right[theirs].T
            _keep_best(scores, places[theirs], places[span], best_ids[span], best[span], barred)

    # One BLAS thread for each of ours: nested thread pools stall each other by a factor of ten on a busy
    # machine, and the result would depend on their number.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(count_threads(threads)) as pool:
        list(pool.map(gather, range(count)))
        list(pool.map(search, range(count)))
    return best_ids, best


def find_exactly(
    anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `find_in_cells` returns, from a faiss search over all pairs.

    Cost: O(m^2 d) time, O(m (d + k)) memory.
    """
    m = len(order)
    index = faiss.IndexFlatIP(anchors.shape[1])
    index.add(positives[order].astype(np.float32))
    cosines, ids = index.search(anchors[order].astype(np.float32), min(k + 1, m))
    # The own row goes by its id: with duplicates the first hit may be another row, or the own row no hit.
    cosines[ids == np.arange(m)[:, None]] = -np.inf
    falling = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    best_ids, best = np.full((m, k), -1, np.int32), np.full((m, k), -np.inf, np.float32)
    found = falling.shape[1]
    best[:, :found] = np.take_along_axis(cosines, falling, 1)
    best_ids[:, :found] = np.take_along_axis(ids, falling, 1)
    best_ids[np.isneginf(best)] = -1
    return best_ids, best


def measure_background(
    anchors: np.ndarray,
    positives: np.ndarray,
    order: np.ndarray,
    cosines: np.ndarray,
    *,
    scale: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (m,) the cosine of each row with its own positive, and (m,) the mean of exp(s_ij - s_ii) over strangers.

    Strangers are those of 512 rows drawn by `rng` that score below all of the row's neighbours, whose (m, k) falling
    `cosines` are given. A row whose neighbours are all the others has none, and 0.
    """
    m = len(order)
    own, mean = np.empty(m, np.float32), np.empty(m, np.float32)
    drawn = rng.choice(m, min(m, _BACKGROUND_ROWS), replace=False)
    others = positives[order[drawn]].astype(np.float32)
    with threadpool_limits(1, "blas"):
        for start in range(0, m, _CHUNK_ROWS):
            span = slice(start, start + _CHUNK_ROWS)
            left = anchors[order[span]].astype(np.float32)
            own[span] = np.einsum("ij,ij->i", left, positives[order[span]].astype(np.float32))
            scores = left @ others.T
            # Less a rounding error, or the last neighbour would at times count as a stranger.
            strange = scores < cosines[span, -1:] - 1e-6
            strange &= drawn != np.arange(start, start + len(left))[:, None]
            excess = np.exp(np.minimum(scale * (scores - own[span, None]), MOST_NATS)) * strange
            mean[span] = excess.sum(axis=1) / np.maximum(strange.sum(axis=1), 1)
    return own, mean


def drop_edges(ids: np.ndarray, *, drop_top: int = 0, keep: int | None = None, mutual: bool = False) -> np.ndarray:
    """Returns a copy of (m, k) neighbours in which those that are not wanted are -1 (B3, arXiv 2505.11293).

    `drop_top` nearest ranks go, which are most often false negatives; `keep` of the ranks after them stay, None for
    all; `mutual` keeps only edges whose reverse is kept too.
    """
    kept = np.full_like(ids, -1)
    ranks = slice(drop_top, None if keep is None else drop_top + keep)
    kept[:, ranks] = ids[:, ranks]
    return _keep_mutual(kept) if mutual else kept


def weigh_neighbors(
    ids: np.ndarray,
    cosines: np.ndarray,
    own: np.ndarray,
    background: np.ndarray,
    *,
    batch_size: int,
    scale: float,
    ceiling: float | None = None,
) -> Affinity:
    """Returns the graph on which Z_i is 1 + the weights of the neighbours in i's batch.

    The unit of row i is exp(s_ii) + (B - 1) background_i: its own positive and B - 1 strangers. A neighbour takes the
    place of a stranger, so it weighs what it has above one. That is our model of the rows that are not in the graph;
    where the graph holds all of them, Z is exact.

    `ids` (-1 for none) and `cosines` are (m, k); `own` and `background` as `measure_background` gives them. Neighbours
    whose cosine is above `ceiling` times the own one are marked in `costs`. They keep their weight, because the loss
    will count them where they do meet.
    """
    barred = np.zeros(ids.shape, np.int8)
    if ceiling is not None:
        barred[(ids >= 0) & (cosines > ceiling * own[:, None])] = 1
    weights = np.exp(np.minimum(scale * (cosines - own[:, None]), MOST_NATS)) - background[:, None]
    weights /= (1.0 + (batch_size - 1) * background)[:, None]
    weights = np.maximum(weights, 0).astype(np.float32)
    return Affinity(*_join(np.where((weights > 0) | (barred > 0), ids, -1), weights, barred))


def weigh_nearest(  # noqa: PLR0913 - those of its three steps
    anchors: np.ndarray,
    positives: np.ndarray,
    order: np.ndarray,
    k: int,
    *,
    batch_size: int,
    scale: float,
    rng: np.random.Generator,
    probes: int = 24,
    threads: int = 0,
    ceiling: float | None = None,
    contradictions: Contradictions | None = None,
) -> Affinity:
    """Returns the graph of each row's k nearest: `find_in_cells`, `measure_background` and `weigh_neighbors` in turn."""
    ids, cosines = find_in_cells(
        anchors, positives, order, k, probes=probes, threads=threads, contradictions=contradictions
    )
    own, background = measure_background(anchors, positives, order, cosines, scale=scale, rng=rng)
    return weigh_neighbors(ids, cosines, own, background, batch_size=batch_size, scale=scale, ceiling=ceiling)


@njit(cache=True, nogil=True)
def _keep_best(
    scores: np.ndarray,
    column_ids: np.ndarray,
    own_ids: np.ndarray,
    best_ids: np.ndarray,
    best: np.ndarray,
    barred: Barred,
) -> None:
    """Merges a block of scores into the k best of each row, leaving out the row's own id and what is barred."""
    k = best.shape[1]
    for r in range(len(own_ids)):
        least, own = best[r, k - 1], own_ids[r]
        most = barred.below[own]
        for c in range(len(column_ids)):
            value = scores[r, c]
            if value <= least or value > most or column_ids[c] == own:
                continue
            if is_barred(barred, own, column_ids[c]):
                continue
            at = k - 1
            while at > 0 and best[r, at - 1] < value:
                best[r, at], best_ids[r, at] = best[r, at - 1], best_ids[r, at - 1]
                at -= 1
            best[r, at], best_ids[r, at] = value, column_ids[c]
            least = best[r, k - 1]


@njit(cache=True, nogil=True)
def _rank_of(ids: np.ndarray, row: int, wanted: int) -> int:
    """Returns at which rank a row has another as its neighbour, -1 where it has not."""
    for e in range(ids.shape[1]):
        if ids[row, e] == wanted:
            return e
    return -1


@njit(cache=True, nogil=True)
def _keep_mutual(ids: np.ndarray) -> np.ndarray:
    kept = ids.copy()
    for i in range(ids.shape[0]):
        for e in range(ids.shape[1]):
            if ids[i, e] >= 0 and _rank_of(ids, ids[i, e], i) < 0:
                kept[i, e] = -1
    return kept


@njit(cache=True, nogil=True)
def _join(ids: np.ndarray, weights: np.ndarray, barred: np.ndarray) -> tuple:  # type: ignore[type-arg]
    """Returns starts, ids, gives, takes, costs of the union of a graph's edges and their reverses."""
    n, k = ids.shape
    starts = np.zeros(n + 1, np.int64)
    back = np.empty((n, k), np.int32)
    for i in range(n):
        for e in range(k):
            if ids[i, e] >= 0:
                back[i, e] = _rank_of(ids, ids[i, e], i)
                starts[i + 1] += 1
                starts[ids[i, e] + 1] += back[i, e] < 0
    starts = np.cumsum(starts)
    end = starts[:n].copy()
    joined, costs = np.empty(starts[n], np.int32), np.empty(starts[n], np.int8)
    gives, takes = np.empty(starts[n], np.float32), np.empty(starts[n], np.float32)
    for i in range(n):
        for e in range(k):
            j, r = ids[i, e], back[i, e]
            if j < 0:
                continue
            at = end[i]
            joined[at], gives[at], end[i] = j, weights[i, e], at + 1
            takes[at] = weights[j, r] if r >= 0 else np.float32(0)
            costs[at] = barred[i, e] + (barred[j, r] if r >= 0 else 0)
            if r < 0:
                at = end[j]
                joined[at], gives[at], takes[at], costs[at], end[j] = i, 0, weights[i, e], barred[i, e], at + 1
    return starts, joined, gives, takes, costs
