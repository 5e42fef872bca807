"""The planner that closes most of the gap: near neighbours in cells of a bisection, METIS, annealed swaps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gcbs_st.planners.algorithms.clusters import cluster_size_of, draw_rest, finish_order
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.algorithms.graph import Affinity, weigh_nearest
from gcbs_st.planners.algorithms.metis import cut_evenly
from gcbs_st.planners.algorithms.swaps import CEILING_PENALTY, anneal_swaps
from gcbs_st.planners.algorithms.trees import grow_trees, project_pairs
from gcbs_st.planners.base import BasePlanner, check_least, check_positive, scale_or_default

# Swaps tried per row, and cells searched, at effort 1.
_MOVES = 50.0
_PROBES = 24
# With a ceiling there are two aims to balance, which takes longer; so does what rows that contradict one another leave.
_CEILING_EFFORT, _CONTRADICTED_EFFORT = 3.0, 1.6
_NEIGHBORS, _CONTRADICTED_NEIGHBORS = 32, 64
_HEAT, _CEILING_HEAT = (0.14, 0.046), (0.1, 0.01)


@dataclass(frozen=True, kw_only=True)
class BestPlanner(BasePlanner):
    """METIS parts refined by annealed swaps on the log-sum-exp that the gap is made of.

    GCBS (Sachidananda et al., arXiv 2210.12874) bounds the gap by an assignment problem and reduces that to
    bandwidth. Here the quantity itself, sum_i log sum_{j in B(i)} exp(s_ij), is climbed by swapping rows between
    batches: the whole global loss less this, divided by n, is the gap.

    Cost: O(n d (256 probes + 128) + n k moves) time, where probes and moves grow with `effort`;
    O(n (2 d + k)) memory.

    The combination is our own; the start is that of B3 (arXiv 2505.11293), from neighbours in cells of a bisection.
    n mod B rows drawn at random fill no batch.

    Attributes:
        effort: time to spend; 1 is 50 swaps per row in about half of GCBS's time, 4 closes a little more.
        neighbors: k, of each row; None for 32, and 64 where rows contradict one another.
        scale: 1 / temperature of the loss; None for that of the loss in training, and 20 outside of it.
        ceiling: rows whose cosine with an anchor is above this times that of its own positive are kept out of its
            batch where possible; 1.0 means every row above the positive, None no row. Only rows among the
            `neighbors` are seen, so raise those where many are above it.
        clusters_per_batch: random clusters of B / clusters_per_batch rows that make a batch; 1 is hardest.
        contradictions: rows that are no negatives of each other and weigh nothing; the trainer says which.
        threads: at work at once, 0 for one per core. The order does not depend on it.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(100, 8))
        >>> order = BestPlanner(neighbors=5).plan(rows, rows, 10, np.random.default_rng(0))
        >>> sorted(order.tolist()) == list(range(100))
        True
    """

    splits: ClassVar[bool] = True

    effort: float = 1.0
    neighbors: int | None = None
    scale: float | None = None
    ceiling: float | None = None
    clusters_per_batch: int = 1
    threads: int = 0
    contradictions: Contradictions | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises a ValueError for an option out of its range."""
        check_least(1, neighbors=self.neighbors, clusters_per_batch=self.clusters_per_batch)
        check_least(0, threads=self.threads)
        check_positive(effort=self.effort, scale=self.scale, ceiling=self.ceiling)

    def order_rows(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns the order; `rng` draws the seeds of tree and swaps, the remainder and the clusters' order."""
        size = cluster_size_of(batch_size, self.clusters_per_batch)
        rows, rest = draw_rest(len(anchors), batch_size, rng)
        if len(rows) > size > 1:
            points = project_pairs(anchors, positives, rows, rng, threads=self.threads)
            rows = rows[grow_trees(points, size, rng, threads=self.threads)]
            del points
            affinity = self._make_graph(anchors, positives, rows, size, rng)
            rows = rows[self._refine(affinity, size, rng)]
        return finish_order(rows, rest, size, batch_size, rng)

    def _make_graph(
        self, anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, size: int, rng: np.random.Generator
    ) -> Affinity:
        return weigh_nearest(
            anchors,
            positives,
            order,
            self.neighbors or (_CONTRADICTED_NEIGHBORS if self.contradictions else _NEIGHBORS),
            batch_size=size,
            scale=scale_or_default(self.scale),
            rng=rng,
            probes=max(1, round(_PROBES * self.effort**0.75)),
            threads=self.threads,
            ceiling=self.ceiling,
            contradictions=self.contradictions,
        )

    def _refine(self, affinity: Affinity, size: int, rng: np.random.Generator) -> np.ndarray:
        """The places of the rows after the swaps."""
        heat, penalty = _HEAT, 0.0
        longer = _CONTRADICTED_EFFORT if self.contradictions else 1.0
        places = cut_evenly(affinity, size, int(rng.integers(2**31)))
        if self.ceiling is not None:
            heat, penalty, longer = _CEILING_HEAT, CEILING_PENALTY, _CEILING_EFFORT
        return anneal_swaps(
            affinity,
            places,
            size,
            moves=_MOVES * self.effort * longer,
            heat=heat,
            penalty=penalty,
            seed=int(rng.integers(2**31)),
            threads=self.threads,
        )[0]
