"""Greedy batches of hard rows that do not contradict each other, as we read HOBIT.

Dutta, Nagalapatti and Prabhu, ICML 2026. Only its abstract is to be had: batches in which every query meets hard yet
non-contradictory negatives, by greedy maximisation of a monotone submodular function.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gcbs_st.planners.algorithms.clusters import draw_rest, finish_order
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.algorithms.graph import MOST_NATS, weigh_nearest
from gcbs_st.planners.algorithms.greedy import grow_batches
from gcbs_st.planners.algorithms.swaps import anneal_swaps
from gcbs_st.planners.algorithms.trees import grow_trees, project_pairs
from gcbs_st.planners.base import BasePlanner, check_least, check_positive, scale_or_default

# Swaps that are nearly downhill only: what greedy choices made stays, and what they left over finds a place.
_HEAT = (0.1, 0.03)


@dataclass(frozen=True, kw_only=True)
class HobitPlanner(BasePlanner):
    """Batches grown row by row from pools of near rows, on the log-sum-exp that the gap is made of.

    A batch grows from the row that has waited longest, by the row of the pool that lets sum_i log sum_{j in B(i)}
    exp(s_ij) grow most, where j is no negative that contradicts i. What greedy choices avoid is left over: a pool
    passes on half of its rows to the next one, and annealed swaps between all batches have the last word.

    Cost: O(n d (pool + 256 probes) + n pool + n k swaps) time; O(pool^2 + n (2 d + k)) memory.

    The paper's definitions of hardness, contradiction and pool are not known. Ours: the quantity above, that of GCBS's
    gap (arXiv 2210.12874) with what a guarded loss masks left out; pools are cells of a bisection; n mod B rows drawn
    at random fill no batch.

    Attributes:
        pool: rows that a batch is chosen from, at least twice those of a batch.
        swaps: tried per row at the end, 0 for the greedy batches alone.
        neighbors: k, of each row, that swaps go by.
        scale: 1 / temperature of the loss; None for that of the loss in training, and 20 outside of it.
        contradictions: rows that are no negatives of each other and weigh nothing; the trainer says which.
        threads: at work at once, 0 for one per core. The order does not depend on it.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(100, 8))
        >>> order = HobitPlanner(pool=40, neighbors=5).plan(rows, rows, 10, np.random.default_rng(0))
        >>> sorted(order.tolist()) == list(range(100))
        True
    """

    splits: ClassVar[bool] = True

    pool: int = 1024
    swaps: float = 50.0
    neighbors: int = 32
    scale: float | None = None
    threads: int = 0
    contradictions: Contradictions | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises a ValueError for an option out of its range."""
        check_least(1, neighbors=self.neighbors)
        check_least(2, pool=self.pool)
        check_least(0, threads=self.threads, swaps=self.swaps)
        check_positive(scale=self.scale)

    def order_rows(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns the order; `rng` draws the seeds of tree and swaps, and the remainder."""
        rows, rest = draw_rest(len(anchors), batch_size, rng)
        if len(rows) > batch_size > 1:
            points = project_pairs(anchors, positives, rows, rng, threads=self.threads)
            rows = rows[grow_trees(points, batch_size, rng, threads=self.threads)]
            del points
            grown = self._grow(anchors, positives, rows, batch_size)
            rows = rows[self._swap(anchors, positives, rows, grown, batch_size, rng) if self.swaps else grown]
        return finish_order(rows, rest, batch_size, batch_size, rng)

    def _grow(self, anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, size: int) -> np.ndarray:
        """Places in the order, batch by batch; near rows are near one another in it."""
        most, waiting, start, batches = max(self.pool, 2 * size), np.empty(0, np.int64), 0, []
        while start < len(order) or len(waiting):
            taken = np.arange(start, min(start + most - len(waiting), len(order)))
            pool, start = np.concatenate([waiting, taken]), start + len(taken)
            # Half of a pool waits for the next one, so that the last batch of a pool has a choice, too.
            wanted = len(pool) if start == len(order) else max(len(pool) - most // 2, size)
            count = wanted // size
            grown = grow_batches(self._weigh(anchors, positives, order[pool]), size, count).ravel()
            batches.append(pool[grown])
            waiting = np.delete(pool, grown)
        return np.concatenate(batches)

    def _weigh(self, anchors: np.ndarray, positives: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(p, p) what each row of a pool is worth as a negative of each other, its own positive being 1."""
        cosines = anchors[rows].astype(np.float32) @ positives[rows].astype(np.float32).T
        own = cosines.diagonal().copy()
        scale = scale_or_default(self.scale)
        weights = np.exp(np.minimum(scale * (cosines - own[:, None]), MOST_NATS), dtype=np.float32)
        if self.contradictions:
            weights[self.contradictions.among(rows, rows, cosines, own)] = 0
        np.fill_diagonal(weights, 0)
        return weights

    def _swap(
        self,
        anchors: np.ndarray,
        positives: np.ndarray,
        order: np.ndarray,
        places: np.ndarray,
        size: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """The places after swaps on the graph of near rows that do not contradict each other."""
        affinity = weigh_nearest(
            anchors,
            positives,
            order,
            self.neighbors,
            batch_size=size,
            scale=scale_or_default(self.scale),
            rng=rng,
            threads=self.threads,
            contradictions=self.contradictions,
        )
        seed = int(rng.integers(2**31))
        return anneal_swaps(affinity, places, size, moves=self.swaps, heat=_HEAT, seed=seed, threads=self.threads)[0]
