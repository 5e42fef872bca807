"""A neighbour graph in, an order of its rows out whose blocks are METIS's parts, brought to exactly one size.

Karypis and Kumar, SIAM J. Sci. Comput. 20, 1998, for METIS.
"""

from __future__ import annotations

import numpy as np
import pymetis
from numba import njit
from scipy.sparse import csr_array

from gcbs_st.planners.algorithms.graph import Affinity


def cut_evenly(affinity: Affinity, size: int, seed: int) -> np.ndarray:
    """Returns (m,) int64, an order of the rows whose blocks of `size` are METIS's parts, brought to that size.

    `affinity` is of m rows, m a multiple of `size`; it is not changed.
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
        # Halves of halves: with thousands of parts the other way closes far less of the gap, and takes three times as long.
        recursive=True,
        options=pymetis.Options(seed=seed),
    )
    return even_parts(affinity, np.asarray(part, dtype=np.int64), parts, size)


def even_parts(affinity: Affinity, part: np.ndarray, parts: int, size: int) -> np.ndarray:
    """Returns (m,) int64 rows part by part, each of the `parts` brought to `size` rows; `part` is that of each row.

    The loosest rows of parts that are too large move to the part with room that they share most with, or else to the
    first with room. Cost: O(m + moved (k + parts)) time.
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
