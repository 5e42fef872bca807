"""METIS cuts the neighbour graph into parts, which are brought to exactly a batch each.

Thirukovalluru et al., "Breaking the Batch Barrier (B3) of Contrastive Learning via Smart Batch Mining",
arXiv 2505.11293, for the graph and its use; Karypis and Kumar, SIAM J. Sci. Comput. 20, 1998, for METIS.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gcbs_st.planners.algorithms.clusters import cluster_size_of, draw_rest, finish_order
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.algorithms.graph import (
    Affinity,
    drop_edges,
    find_exactly,
    find_in_cells,
    measure_background,
    weigh_neighbors,
)
from gcbs_st.planners.algorithms.metis import cut_evenly
from gcbs_st.planners.algorithms.swaps import CEILING_PENALTY, anneal_swaps
from gcbs_st.planners.algorithms.trees import grow_trees, project_pairs
from gcbs_st.planners.base import BasePlanner, check_least, check_positive, scale_or_default

# Cells that each cell looks into.
_PROBES = 32
# Swaps tried per row to part pairs above the ceiling.
_CEILING_MOVES = 40.0
_CEILING_HEAT = (0.05, 0.01)


@dataclass(frozen=True, kw_only=True)
class PartitionPlanner(BasePlanner):
    """METIS parts of the k-neighbour graph as batches.

    Cost: O(n d 256 probes) time for the graph (`exact`: O(n^2 d)), O(n k log(n / B)) for METIS;
    O(n (2 d + k)) memory.

    Where B3 ranks with a teacher, the embeddings themselves rank here. Our choices: neighbours are found in
    cells of a bisection; an edge weighs 100 log(1 + what Z of its rows gains from it); parts that METIS leaves
    a few rows too large give up their loosest; n mod B rows drawn at random fill no batch.

    Attributes:
        neighbors: ranked for each anchor, its own row left out.
        drop_top: B3's p: nearest ranks dropped, which are most often false negatives.
        keep: B3's m: how many of the ranks after those are kept; None for all.
        mutual: keep an edge only where both rows have each other among theirs, as B3 does.
        exact: search all pairs with faiss, and not only those of 32 cells of 256 rows for each cell.
        scale: 1 / temperature of the loss; None for that of the loss in training, and 20 outside of it.
        ceiling: rows whose cosine with an anchor is above this times that of its own positive are kept out of its
            batch where possible; 1.0 means every row above the positive, None no row. Only rows among the
            `neighbors` are seen, so raise those where many are above it.
        clusters_per_batch: random clusters of B / clusters_per_batch rows that make a batch; 1 is hardest.
        contradictions: rows that are no negatives of each other and weigh nothing; the trainer says which.
        threads: at work at once, 0 for one per core.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(100, 8))
        >>> order = PartitionPlanner(neighbors=5).plan(rows, rows, 10, np.random.default_rng(0))
        >>> sorted(order.tolist()) == list(range(100))
        True
    """

    splits: ClassVar[bool] = True

    neighbors: int = 20
    drop_top: int = 0
    keep: int | None = None
    mutual: bool = False
    exact: bool = False
    scale: float | None = None
    ceiling: float | None = None
    clusters_per_batch: int = 1
    threads: int = 0
    contradictions: Contradictions | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises a ValueError for an option out of its range."""
        check_least(1, neighbors=self.neighbors, clusters_per_batch=self.clusters_per_batch, keep=self.keep)
        check_least(0, drop_top=self.drop_top, threads=self.threads)
        if self.drop_top >= self.neighbors:
            raise ValueError(
                f"drop_top: got {self.drop_top}, expected less than the {self.neighbors} neighbors that are ranked."
            )
        check_positive(scale=self.scale, ceiling=self.ceiling)

    def order_rows(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns the order; `rng` draws the seeds of tree and METIS, the remainder and the clusters' order."""
        size = cluster_size_of(batch_size, self.clusters_per_batch)
        rows, rest = draw_rest(len(anchors), batch_size, rng)
        if len(rows) > size > 1:
            points = project_pairs(anchors, positives, rows, rng, threads=self.threads)
            rows = rows[grow_trees(points, size, rng, threads=self.threads)]
            del points
            affinity = self._make_graph(anchors, positives, rows, size, rng)
            places = cut_evenly(affinity, size, int(rng.integers(2**31)))
            if self.ceiling is not None:
                places, _ = anneal_swaps(
                    affinity,
                    places,
                    size,
                    moves=_CEILING_MOVES,
                    heat=_CEILING_HEAT,
                    penalty=CEILING_PENALTY,
                    seed=int(rng.integers(2**31)),
                    threads=self.threads,
                )
            rows = rows[places]
        return finish_order(rows, rest, size, batch_size, rng)

    def _make_graph(
        self, anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, size: int, rng: np.random.Generator
    ) -> Affinity:
        scale = scale_or_default(self.scale)
        if self.exact and not self.contradictions:
            ids, cosines = find_exactly(anchors, positives, order, self.neighbors)
        else:  # faiss cannot leave out what is no negative
            ids, cosines = find_in_cells(
                anchors,
                positives,
                order,
                self.neighbors,
                probes=len(order) if self.exact else _PROBES,
                threads=self.threads,
                contradictions=self.contradictions,
            )
        own, background = measure_background(anchors, positives, order, cosines, scale=scale, rng=rng)
        ids = drop_edges(ids, drop_top=self.drop_top, keep=self.keep, mutual=self.mutual)
        return weigh_neighbors(ids, cosines, own, background, batch_size=size, scale=scale, ceiling=self.ceiling)
