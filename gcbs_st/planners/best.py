"""The planner that closes most of the gap: bisection, near neighbours in its cells, annealed swaps.

Its parts are `trees.py`, `gcbs_st.graph` and `swaps.py`.
"""

from __future__ import annotations

import numpy as np

from gcbs_st.graph import Affinity, find_in_cells, measure_background, weigh_neighbors
from gcbs_st.planners.base import check_pairs, scale_or_default
from gcbs_st.planners.bisect import check_least, cluster_rows, draw_rest, finish_order
from gcbs_st.planners.partition import CEILING_PENALTY, check_positive, cut_evenly
from gcbs_st.planners.swaps import anneal_swaps
from gcbs_st.planners.trees import DIMS, grow_trees, project_pairs

# Swaps tried a row and cells searched, at effort 1.
_MOVES = 50.0
_PROBES = 24
# With a ceiling there are two aims to balance, which takes longer.
_CEILING_EFFORT = 3.0
# From this effort on METIS gives the start. It is nearer to the end, where a cooler beginning keeps what it found.
_METIS_EFFORT = 2.0
_HEAT, _METIS_HEAT, _CEILING_HEAT = (0.32, 0.065), (0.14, 0.046), (0.1, 0.01)


class BestPlanner:
    """Bisection refined by annealed swaps on the log-sum-exp that the gap is made of.

    GCBS (Sachidananda et al., arXiv 2210.12874) bounds the gap by an assignment problem and reduces that to
    bandwidth. Here the quantity itself, sum_i log sum_{j in B(i)} exp(s_ij), is climbed by swapping rows between
    batches: the whole global loss less this, divided by n, is the gap.

    Cost: O(n d (256 probes + dims) + n k moves) time, where probes and moves grow with `effort`;
    O(n (2 d + k)) memory.

    The combination is our own; the start is NGAME's (arXiv 2207.04452). n mod B rows drawn at random fill no batch.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(100, 8))
        >>> order = BestPlanner(neighbors=5).plan(rows, rows, 10, np.random.default_rng(0))
        >>> sorted(order.tolist()) == list(range(100))
        True
    """

    # Several processes may each plan rows that lie together, see `gcbs_st.parallel_planning`.
    splits = True

    def __init__(
        self,
        *,
        effort: float = 1.0,
        neighbors: int = 32,
        scale: float | None = None,
        directions: str = "anchor",
        ceiling: float | None = None,
        clusters_per_batch: int = 1,
        threads: int = 0,
    ) -> None:
        """Takes what to climb and how long.

        Args:
            effort: time to spend; 1 is 50 swaps a row in about half of GCBS's time, 4 closes a little more.
                From 2 on, and with a ceiling, METIS gives the start.
            neighbors: k, a row.
            scale: 1 / temperature of the loss; None for that of the loss in training, and 20 outside of it.
            directions: "anchor" for the loss of anchors against positives, which the gap is defined by; "both"
                to count that of positives against anchors as much.
            ceiling: rows whose cosine with an anchor is above this times that of its own positive are kept out
                of its batch where possible; 1.0 means every row above the positive, None no row.
                Only rows among the `neighbors` are seen, so raise those where many are above it.
            clusters_per_batch: random clusters of B / clusters_per_batch rows that make a batch; 1 is hardest.
            threads: at work at once, 0 for one a core. The order does not depend on it.

        Raises:
            ValueError: an option out of its range.
        """
        check_least(1, neighbors=neighbors, clusters_per_batch=clusters_per_batch)
        check_least(0, threads=threads)
        check_positive(effort=effort, scale=scale, ceiling=ceiling)
        if directions not in ("anchor", "both"):
            raise ValueError(f"directions: got {directions!r}, expected 'anchor' or 'both'.")
        self.effort = effort
        self.neighbors = neighbors
        self.scale = scale
        self.directions = directions
        self.ceiling = ceiling
        self.clusters_per_batch = clusters_per_batch
        self.threads = threads

    def plan(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns (n,) int64, the order of the rows.

        Args:
            anchors: (n, d) floats, unit rows.
            positives: (n, d) floats, unit rows; row i is the positive of anchor i.
            batch_size: rows a batch, a multiple of `clusters_per_batch`.
            rng: draws the seeds of the tree and of the swaps, the remainder and the combination of clusters.

        Returns:
            The order of the rows; the last n mod B fill no batch.

        Raises:
            ValueError: input that no planner takes, see `gcbs_st.planners.base.check_pairs`; a batch size
                that is no multiple of `clusters_per_batch`.
        """
        anchors, positives = check_pairs(anchors, positives, batch_size)
        size = cluster_rows(batch_size, self.clusters_per_batch)
        rows, rest = draw_rest(len(anchors), batch_size, rng)
        if len(rows) > size > 1:
            points = project_pairs(anchors, positives, rows, DIMS, rng, threads=self.threads)
            rows = rows[grow_trees(points, size, rng, threads=self.threads)]
            del points
            affinity = self._make_graph(anchors, positives, rows, size, rng)
            rows = rows[self._refine(affinity, size, rng)]
        return finish_order(rows, rest, size, batch_size, rng)

    def _make_graph(
        self, anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, size: int, rng: np.random.Generator
    ) -> Affinity:
        sides = [(anchors, positives), (positives, anchors)] if self.directions == "both" else [(anchors, positives)]
        probes = max(1, round(_PROBES * self.effort**0.75))
        graphs = []
        for queries, keys in sides:
            ids, cosines = find_in_cells(queries, keys, order, self.neighbors, probes=probes, threads=self.threads)
            own, background = measure_background(
                queries, keys, order, cosines, scale=scale_or_default(self.scale), rng=rng
            )
            graphs.append(
                weigh_neighbors(
                    ids,
                    cosines,
                    own,
                    background,
                    batch_size=size,
                    scale=scale_or_default(self.scale),
                    ceiling=self.ceiling,
                )
            )
        return graphs[0] if len(graphs) == 1 else stack_directions(*graphs)

    def _refine(self, affinity: Affinity, size: int, rng: np.random.Generator) -> np.ndarray:
        """The places of the rows after the swaps."""
        places, heat, penalty = np.arange(len(affinity.starts) - 1), _HEAT, 0.0
        if self.effort >= _METIS_EFFORT or self.ceiling is not None:
            places, heat = cut_evenly(affinity, size, int(rng.integers(2**31))), _METIS_HEAT
        if self.ceiling is not None:
            heat, penalty = _CEILING_HEAT, CEILING_PENALTY
        return anneal_swaps(
            affinity,
            places,
            size,
            moves=_MOVES * self.effort * (1 if self.ceiling is None else _CEILING_EFFORT),
            heat=heat,
            penalty=penalty,
            seed=int(rng.integers(2**31)),
            threads=self.threads,
        )[0]


def stack_directions(first: Affinity, second: Affinity) -> Affinity:
    """Returns one graph about both directions of the loss.

    Args:
        first: of the anchors against the positives.
        second: of the positives against the anchors, for the same m rows.

    Returns:
        The graph; a row that touches another in both has two entries for it.
    """
    starts = first.starts + second.starts
    middles = starts[:-1] + np.diff(first.starts)
    of_first = np.arange(len(first.ids)) + np.repeat(second.starts[:-1], np.diff(first.starts))
    of_second = np.arange(len(second.ids)) + np.repeat(first.starts[1:], np.diff(second.starts))
    stacked = []
    for one, other in zip(first[2:], second[2:], strict=True):
        both = np.empty(len(one) + len(other), one.dtype)
        both[of_first], both[of_second] = one, other
        stacked.append(both)
    return Affinity(starts, middles, *stacked)
