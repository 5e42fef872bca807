"""METIS cuts the neighbour graph into parts, which are brought to exactly a batch each.

Thirukovalluru et al., "Breaking the Batch Barrier (B3) of Contrastive Learning via Smart Batch Mining",
arXiv 2505.11293, for the graph and its use; Karypis and Kumar, SIAM J. Sci. Comput. 20, 1998, for METIS.
"""

from __future__ import annotations

import numpy as np
import pymetis
from numba import njit
from scipy.sparse import csr_array

from gcbs_st.graph import (
    Affinity,
    drop_edges,
    find_exactly,
    find_in_cells,
    measure_background,
    weigh_neighbors,
)
from gcbs_st.planners.base import check_pairs, scale_or_default
from gcbs_st.planners.bisect import check_least, cluster_rows, draw_rest, finish_order
from gcbs_st.planners.swaps import anneal_swaps
from gcbs_st.planners.trees import DIMS, grow_trees, project_pairs

# Cells that each cell looks into.
_PROBES = 32
# Nats that an ordered pair above the ceiling costs: as much as its anchor's Z gains by growing by 39 %. Chosen so
# that captions embedded by MiniLM lose half of their false negatives. Swaps tried a row to part such pairs.
CEILING_PENALTY = 0.33
_CEILING_MOVES = 40.0
_CEILING_HEAT = (0.05, 0.01)


class PartitionPlanner:
    """METIS parts of the k-neighbour graph as batches.

    Cost: O(n d 256 probes) time for the graph (`exact`: O(n^2 d)), O(n k log(n / B)) for METIS;
    O(n (2 d + k)) memory.

    Where B3 ranks with a teacher, the embeddings themselves rank here. Our choices: neighbours are found in
    cells of a bisection; an edge weighs 100 log(1 + what Z of its rows gains from it); parts that METIS leaves
    a few rows too large give up their loosest; n mod B rows drawn at random fill no batch.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(100, 8))
        >>> order = PartitionPlanner(neighbors=5).plan(rows, rows, 10, np.random.default_rng(0))
        >>> sorted(order.tolist()) == list(range(100))
        True
    """

    # Several processes may each plan rows that lie together, see `gcbs_st.parallel_planning`.
    splits = True

    def __init__(  # noqa: PLR0913 - B3's options beside those of every clustering planner
        self,
        *,
        neighbors: int = 20,
        drop_top: int = 0,
        keep: int | None = None,
        mutual: bool = False,
        exact: bool = False,
        scale: float | None = None,
        ceiling: float | None = None,
        clusters_per_batch: int = 1,
        threads: int = 0,
    ) -> None:
        """Takes how the graph is made, B3's options among them, and how its parts become batches.

        Args:
            neighbors: ranked for each anchor, its own row left out.
            drop_top: B3's p: nearest ranks dropped, which are most often false negatives.
            keep: B3's m: how many of the ranks after those are kept; None for all.
            mutual: keep an edge only where both rows have each other among theirs, as B3 does.
            exact: search all pairs with faiss, and not only those of 32 cells of 256 rows for each cell.
            scale: 1 / temperature of the loss; None for that of the loss in training, and 20 outside of it.
            ceiling: rows whose cosine with an anchor is above this times that of its own positive are kept out
                of its batch where possible; 1.0 means every row above the positive, None no row.
                Only rows among the `neighbors` are seen, so raise those where many are above it.
            clusters_per_batch: random clusters of B / clusters_per_batch rows that make a batch; 1 is hardest.
            threads: at work at once, 0 for one a core.

        Raises:
            ValueError: an option out of its range.
        """
        check_least(1, neighbors=neighbors, clusters_per_batch=clusters_per_batch)
        check_least(1, keep=1 if keep is None else keep)
        check_least(0, drop_top=drop_top, threads=threads)
        if drop_top >= neighbors:
            raise ValueError(
                f"drop_top: got {drop_top}, expected less than the {neighbors} neighbors that are ranked."
            )
        check_positive(scale=scale, ceiling=ceiling)
        self.neighbors = neighbors
        self.drop_top = drop_top
        self.keep = keep
        self.mutual = mutual
        self.exact = exact
        self.scale = scale
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
            rng: draws the seeds of the tree and of METIS, the remainder and the combination of clusters.

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
        if self.exact:
            ids, cosines = find_exactly(anchors, positives, order, self.neighbors)
        else:
            ids, cosines = find_in_cells(
                anchors, positives, order, self.neighbors, probes=_PROBES, threads=self.threads
            )
        own, background = measure_background(
            anchors, positives, order, cosines, scale=scale_or_default(self.scale), rng=rng
        )
        ids = drop_edges(ids, drop_top=self.drop_top, keep=self.keep, mutual=self.mutual)
        return weigh_neighbors(
            ids, cosines, own, background, batch_size=size, scale=scale_or_default(self.scale), ceiling=self.ceiling
        )


def check_positive(**options: float | None) -> None:
    """Returns nothing, if every option that is given is above 0.

    Args:
        options: name and value; None for one that is not given.

    Raises:
        ValueError: an option is 0 or below.
    """
    for name, value in options.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name}: got {value}, expected a number above 0.")


def cut_evenly(affinity: Affinity, size: int, seed: int) -> np.ndarray:
    """Returns (m,) int64, an order of the rows whose blocks of `size` are METIS's parts, brought to that size.

    Args:
        affinity: of m rows, m a multiple of `size`.
        size: rows a part.
        seed: of METIS.

    Returns:
        The rows part by part.
    """
    m = len(affinity.starts) - 1
    parts = m // size
    if parts == 1:
        return np.arange(m)
    worth = np.log1p(affinity.gives) + np.log1p(affinity.takes)
    # METIS adds up all weights in 32 bits.
    unit = min(100.0, 2**29 / max(1.0, float(worth.sum(dtype=np.float64))))
    # Two rows that touch in both directions of the loss are one edge to METIS, hence the sum of duplicates.
    graph = csr_array(((1 + unit * worth) * (worth > 0), affinity.ids, affinity.starts), shape=(m, m), copy=True)
    graph.sum_duplicates()
    graph.eliminate_zeros()
    _, part = pymetis.part_graph(
        parts,
        adjacency=pymetis.CSRAdjacency(graph.indptr, graph.indices),
        eweights=graph.data.astype(np.int64),
        options=pymetis.Options(seed=seed),
    )
    return even_parts(affinity, np.asarray(part, dtype=np.int64), parts, size)


def even_parts(affinity: Affinity, part: np.ndarray, parts: int, size: int) -> np.ndarray:
    """Returns (m,) int64 rows part by part, each part brought to exactly `size` rows.

    The loosest rows of parts that are too large move to the part with room that they share most with, or else to
    the first with room. Cost: O(m + moved (k + parts)) time.

    Args:
        affinity: of m = parts * size rows.
        part: (m,) part of each row.
        parts: number of parts.
        size: rows in a part.

    Returns:
        The rows.
    """
    return np.argsort(_even(affinity, part.copy(), parts, size), kind="stable")


@njit(cache=True, nogil=True)
def _take_loosest(graph: Affinity, part: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Returns the rows taken out of parts that are too large, loosest first; their part becomes -1."""
    m = len(part)
    held = np.zeros(m)
    for i in range(m):
        room[part[i]] -= 1
        for e in range(graph.starts[i], graph.starts[i + 1]):
            if part[graph.ids[e]] == part[i]:
                held[i] += graph.gives[e] + graph.takes[e]
    taken, count = np.empty(m, np.int64), 0
    for i in np.argsort(held, kind="mergesort"):
        if room[part[i]] < 0:
            room[part[i]] += 1
            part[i], taken[count], count = -1, i, count + 1
    return taken[:count]


@njit(cache=True, nogil=True)
def _find_room(graph: Affinity, part: np.ndarray, room: np.ndarray, shared: np.ndarray, i: int) -> int:
    """Returns the part with room that a row shares most with, -1 for none; `shared` is all zero between calls."""
    best = -1
    for e in range(graph.starts[i], graph.starts[i + 1]):
        p = part[graph.ids[e]]
        if p >= 0 and room[p] > 0:
            shared[p] += graph.gives[e] + graph.takes[e]
            if best < 0 or shared[p] > shared[best]:
                best = p
    for e in range(graph.starts[i], graph.starts[i + 1]):
        shared[part[graph.ids[e]]] = 0.0
    return best


@njit(cache=True, nogil=True)
def _even(graph: Affinity, part: np.ndarray, parts: int, size: int) -> np.ndarray:
    """Returns the part of each row after the moves of `even_parts`."""
    room, shared, first = np.full(parts, size), np.zeros(parts), 0
    for i in _take_loosest(graph, part, room):
        while room[first] == 0:
            first += 1
        best = _find_room(graph, part, room, shared, i)
        part[i] = first if best < 0 else best
        room[part[i]] -= 1
    return part
