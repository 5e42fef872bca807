"""Tail Batch Sampling: every row keeps the tail of its own similarities, and the worst rows come first.

In: unit rows, anchors and positives. Out: an order in which rows lie near their hardest negatives, no row
left far behind the others. Sachidananda, Yang and Zhu, arXiv 2210.12874, version 1 (October 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from gcbs_st.planners.algorithms.hardest import as_float32, dot, find_hardest
from gcbs_st.planners.base import BasePlanner, check_least, check_positive, check_share, scale_or_default

# Passes over the worst rows, and the share of the rows that each pass cares for.
_PASSES, _WORST = 8, 0.05


@dataclass(frozen=True, kw_only=True)
class TailBatchPlanner(BasePlanner):
    """Batches from the tail of each row's own similarities, refined for the rows that fare worst.

    The full text of the paper's first version was not found. This is our reading of its title and
    abstract, beside `GCBSPlanner`, the later version:

    - "tail": each anchor keeps its own k = (1 - quantile) n hardest negatives, at least one, so that all
      rows have the same number of edges, where GCBS applies one threshold to all products;
    - the graph is made symmetric and ordered by reverse Cuthill-McKee, blocks of B rows are the batches;
    - "bottleneck": two rows of different batches change places where that helps the worst rows.

    A row's gap is log sum_{all j} exp(s_ij) - log sum_{j in batch} exp(s_ij), s = scale * similarity. A
    swap is made if it lowers the summed excess of gaps over their 0.95 quantile, and leaves no row
    of the two batches with a larger gap than their largest was. So with each swap the mean gap of the worst
    rows falls and the largest gap of all never rises; the mean of all is not looked at.

    Cost: n^2 d multiplications, and 6 B d for each swap that is tried, at most 0.4 n of them in each of 8 passes.
    Memory: 5 n k bytes for the graph, with `refine` 4 n k more and float32 copies of rows of another type.

    Attributes:
        quantile: in (0, 1), the share of each row's products below its tail; 0.999 as in GCBS (this version's own
            value was not found).
        neighbors: if given, the tail has this many negatives per row, whatever n.
        refine: swap rows for the sake of the worst. Without it the plan does not depend on the scale.
        scale: 1 / temperature of the loss, above 0; None for that of the loss in training, and 20 outside of it.
        threads: at work at once, 0 for one per core; the plan does not depend on it.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(60, 8))
        >>> order = TailBatchPlanner(quantile=0.9, refine=False).plan(rows, rows, 10, np.random.default_rng(0))
        >>> sorted(order.tolist()) == list(range(60))
        True
    """

    quantile: float = 0.999
    neighbors: int | None = None
    refine: bool = True
    scale: float | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        """Raises a ValueError for an option out of its range."""
        check_share(quantile=self.quantile)
        check_least(1, neighbors=self.neighbors)
        check_least(0, threads=self.threads)
        check_positive(scale=self.scale)

    def order_rows(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns the order, which follows from the embeddings alone; a shorter last block is not refined."""
        n = len(anchors)
        if n <= 2:
            return np.arange(n)
        k = round((1 - self.quantile) * n) if self.neighbors is None else self.neighbors
        scale = scale_or_default(self.scale)
        refine = self.refine and batch_size > 1 and n >= 2 * batch_size
        hardest, products, totals = find_hardest(
            anchors, positives, min(max(k, 1), n - 1), scale=scale if refine else None, threads=self.threads
        )
        starts = np.arange(n + 1, dtype=np.int64) * hardest.shape[1]
        if hardest.size < 2**31:
            starts = starts.astype(np.int32)
        # SciPy takes rows of equal degree in the order in which they are stored.
        columns = np.sort(hardest, axis=1).ravel()
        graph = csr_array((np.ones(len(columns), dtype=np.int8), columns, starts), shape=(n, n))
        # SciPy orders A + A^T. Its order is the reversed one, which changes no block but for the remainder.
        order = reverse_cuthill_mckee(graph, symmetric_mode=False).astype(np.int64)
        if refine:
            shares = np.exp(scale * products - totals[:, None], dtype=np.float32)
            pair = as_float32(anchors), as_float32(positives)
            planned = np.arange(n // batch_size * batch_size)
            where, inside = np.full(n, -1), np.ones(n)
            where[order[planned]] = planned
            state = _State(*pair, totals, scale, hardest, shares, order, where, inside, batch_size)
            raise_worst_rows(state)
        return order


class _State(NamedTuple):
    """What the swaps read, and what they change: order, where and inside."""

    anchors: np.ndarray  # (n, d) float32, as `as_float32` gives them
    positives: np.ndarray  # (n, d) float32
    totals: np.ndarray  # (n,) float64 log-sum-exp of each row over all rows
    scale: float  # 1 / temperature
    hardest: np.ndarray  # (n, k) int32, each row's hardest negatives
    shares: np.ndarray  # (n, k) float32, exp(s_ij - total_i) of each
    order: np.ndarray  # (n,) int64
    where: np.ndarray  # (n,) int64, the place of each row in the order; -1 outside of whole batches
    inside: np.ndarray  # (n,) float64, the share of each row's sum that is in its batch: exp(-gap)
    b: int  # rows per batch


def raise_worst_rows(state: _State, passes: int = _PASSES) -> int:
    """Returns how many swaps were made in passes over the worst share of the rows, at least one row."""
    planned, made = np.flatnonzero(state.where >= 0), 0
    _sum_batches(state)
    for _ in range(passes):
        gaps = -np.log(state.inside[planned])
        chosen = planned[np.argsort(-gaps, kind="stable")[: int(np.ceil(_WORST * len(planned)))]]
        # The mean gap of the worst rows is this level plus their mean excess over it; for any later plan that
        # is an upper bound (Rockafellar and Uryasev 2000), so a lower excess means better worst rows.
        swaps = _swap_pass(state, chosen, -np.log(state.inside[chosen[-1]]))
        made += swaps
        if not swaps:
            break
    return made


@njit(cache=True, nogil=True)
def _share(state: _State, i: int, j: int) -> float:
    """Returns exp(s_ij) as a share of row i's sum over all rows, never 0."""
    return max(np.exp(state.scale * dot(state.anchors, i, state.positives, j) - state.totals[i]), 1e-300)


@njit(cache=True, nogil=True)
def _sum_inside(state: _State, i: int, batch: int, without: int, with_row: int) -> float:
    """Returns row i's share inside a batch with one of its rows, `without`, replaced by another."""
    total = 0.0
    for at in range(batch * state.b, batch * state.b + state.b):
        c = state.order[at]
        total += _share(state, i, with_row if c == without else c)
    return total


@njit(cache=True, nogil=True)
def _sum_batches(state: _State) -> None:
    """Fills each row's share inside its batch."""
    for i in range(len(state.where)):
        if state.where[i] >= 0:
            state.inside[i] = _sum_inside(state, i, state.where[i] // state.b, -1, -1)


@njit(cache=True, nogil=True)
def _cost_of_moving(state: _State, target: int, home: int) -> np.ndarray:
    """Returns what it costs, about, to move each row of batch `target` to `home`: the sum of gaps, first order."""
    b = state.b
    cost = np.zeros(b)
    for t in range(2 * b):
        c = state.order[target * b + t if t < b else home * b + t - b]
        for e in range(state.hardest.shape[1]):
            place = state.where[state.hardest[c, e]]
            near, weight = place // b, state.shares[c, e] / state.inside[c]
            if near == target:
                # The neighbour would leave row c behind, or come to it.
                cost[place - target * b] += weight if t < b else -weight
            if t < b and (near == target or near == home):
                cost[t] += weight if near == target else -weight
    return cost


@njit(cache=True, nogil=True)
def _try_swap(state: _State, i: int, k: int, level: float) -> bool:
    """Swaps two rows of different batches if the worst rows gain by it; returns whether they do.

    They gain if the gaps' excess over the level falls and no row gets a larger gap than the largest was.
    """
    b, inside, order, where = state.b, state.inside, state.order, state.where
    home, target = where[i] // b, where[k] // b
    fresh_i = _sum_inside(state, i, target, k, i)
    if fresh_i <= inside[i]:
        return False
    excess, top = -1e-9, 0.0
    for t in range(2 * b):
        gap = -np.log(inside[order[home * b + t if t < b else target * b + t - b]])
        excess, top = excess + max(gap - level, 0.0), max(top, gap)
    fresh, fresh_k = np.empty(2 * b), _sum_inside(state, k, home, i, k)
    for t in range(2 * b):
        c = order[home * b + t if t < b else target * b + t - b]
        leaves, comes = (i, k) if t < b else (k, i)
        if c == leaves:
            fresh[t] = fresh_i if c == i else fresh_k
        else:
            fresh[t] = inside[c] - _share(state, c, leaves) + _share(state, c, comes)
            if fresh[t] < 1e-3 * inside[c]:
                # Nothing but rounding may be left of such a difference.
                fresh[t] = _sum_inside(state, c, home if t < b else target, leaves, comes)
        gap = -np.log(fresh[t])
        excess -= max(gap - level, 0.0)
        if excess < 0.0 or gap > top:
            return False
    for t in range(2 * b):
        inside[order[home * b + t if t < b else target * b + t - b]] = fresh[t]
    order[where[i]], order[where[k]] = k, i
    where[i], where[k] = where[k], where[i]
    return True


@njit(cache=True, nogil=True)
def _rank_targets(state: _State, i: int, targets: np.ndarray) -> None:
    """Fills in the batches, other than its own, with the largest shares of row i's tail, then -1."""
    batches = state.where[state.hardest[i]] // state.b
    targets[:] = -1
    for t in range(len(targets)):
        most = 0.0
        for batch in batches:
            mass = 0.0
            for e in range(len(batches)):
                mass += state.shares[i, e] if batches[e] == batch else 0.0
            if mass > most and batch >= 0 and batch != state.where[i] // state.b and batch not in targets[:t]:
                targets[t], most = batch, mass


@njit(cache=True, nogil=True)
def _move(state: _State, i: int, target: int, level: float) -> bool:
    """Swaps row i with one of two rows of a batch, those least missed there, if the worst rows gain by it."""
    cost = _cost_of_moving(state, target, state.where[i] // state.b)
    for _ in range(min(2, state.b)):
        at = np.argmin(cost)
        cost[at] = np.inf
        if _try_swap(state, i, state.order[target * state.b + at], level):
            return True
    return False


@njit(cache=True, nogil=True)
def _swap_pass(state: _State, chosen: np.ndarray, level: float) -> int:
    """Returns how many swaps were made for the chosen rows, each into one of up to four batches."""
    made, targets = 0, np.empty(4, np.int64)
    for i in chosen:
        if -np.log(state.inside[i]) >= level:
            _rank_targets(state, i, targets)
            for target in targets:
                if target >= 0 and _move(state, int(i), int(target), level):
                    made += 1
                    break
    return made
