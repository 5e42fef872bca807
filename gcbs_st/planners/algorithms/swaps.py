"""Annealed swaps: a plan and a neighbour graph in, a better plan out, by exchanging rows between batches.

The quantity is the one that the gap is made of, sum_i log Z_i with Z_i = sum_{j in B(i)} exp(s_ij), and each swap
is judged by its exact change of it on the graph. Batches keep their size throughout.

Simulated annealing is Kirkpatrick, Gelatt and Vecchi, Science 220, 1983; the moves are our own.
"""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from gcbs_st.planners.algorithms.graph import Affinity
from gcbs_st.planners.base import count_threads

# Batches are dealt anew into groups each round, and rows swap within a group only, so that the groups can run side by
# side. How many must not depend on the number of threads, and neither must the result.
GROUPS = 4
_ROUNDS = 48
# With many rows half of the rounds swap within stretches of the order, whose rows are near one another and whose part of
# the graph fits into a core's cache: a swap between any two of a million rows spends its time waiting for memory. A stretch
# goes through some rounds at once. The other half draws groups from all batches, for what the order has put far apart.
_STRETCH_BATCHES, _STRETCH_ROWS = 64, 4096
_ROUNDS_AT_ONCE = 4
# Nats that an ordered pair above the ceiling costs: as much as its anchor's Z gains by growing by 39 %. Chosen so
# that captions embedded by MiniLM lose half of their false negatives.
CEILING_PENALTY = 0.33
_LARGE = 1e200


class Seats(NamedTuple):
    """A plan in the making: who sits where, and what Z of each row is."""

    order: np.ndarray  # (m,) int32 rows, blocks are batches
    place: np.ndarray  # (m,) int32, the inverse of `order`
    part: np.ndarray  # (m,) int32 batch of each row
    z: np.ndarray  # (m,) float64, Z of each row in its own unit


def anneal_swaps(
    affinity: Affinity,
    order: np.ndarray,
    batch_size: int,
    *,
    moves: float,
    heat: tuple[float, float] = (0.32, 0.065),
    penalty: float = 0.0,
    seed: int = 0,
    threads: int = 0,
) -> tuple[np.ndarray, float]:
    """Returns a better (m,) int64 order and its objective, sum_i log Z_i less penalties; the given one if better.

    A move takes a random row to the batch of one of its neighbours, in exchange for the loosest of four rows there. It
    is kept if the objective rises, or with probability exp(change / heat); the heat falls geometrically. Blocks of
    `batch_size` rows of `order` are batches, `moves` are swaps tried per row, `penalty` is in nats for each ordered
    pair of `affinity.costs` within a batch. The first and the last `heat` are in shares of the mean log Z that `order`
    has: what a swap can gain differs by orders of magnitude between models, and a heat in nats would melt some plans.

    Cost: O(m moves k) time, O(m k) memory, that of the graph. The result does not depend on `threads`.
    """
    seats = take_seats(affinity, order, batch_size)
    m, rng = len(order), np.random.default_rng(seed)
    mean, before = float(np.log(seats.z).sum()) / m, measure_objective(affinity, seats, penalty)
    local = threading.local()

    def swap(task: tuple[Any, ...]) -> None:
        if not hasattr(local, "scratch"):
            local.scratch = np.zeros(m // batch_size, np.bool_), np.zeros(m)
        batches, warmths, state = task
        tried = int(len(batches) * batch_size * moves / _ROUNDS)
        for warmth in warmths:
            _swap_rows(affinity, seats, batch_size, penalty, local.scratch, batches, tried, warmth, state)

    warmths = np.maximum(1e-9, mean * heat[0] * (heat[1] / heat[0]) ** (np.arange(_ROUNDS) / (_ROUNDS - 1)))
    step = 0
    with ThreadPoolExecutor(count_threads(threads)) as pool:
        while step < _ROUNDS:
            dealt, rounds = _deal(m // batch_size, batch_size, step, rng)
            states = rng.integers(1, 2**62, size=(len(dealt), 1)).astype(np.uint64)
            tasks = [
                (batches, warmths[step : step + rounds], state) for batches, state in zip(dealt, states, strict=True)
            ]
            list(pool.map(swap, tasks))
            step += rounds
    after = measure_objective(affinity, seats, penalty)
    return (seats.order.astype(np.int64), after) if after >= before else (order.astype(np.int64), before)


def _deal(batches: int, batch_size: int, step: int, rng: np.random.Generator) -> tuple[list[np.ndarray], int]:
    """The batches in groups from a round on, and for how many rounds."""
    stretch = max(_STRETCH_BATCHES, _STRETCH_ROWS // batch_size)
    if batches <= GROUPS * stretch or step // _ROUNDS_AT_ONCE % 2:
        groups = GROUPS if batches >= 8 * GROUPS else 1
        return [np.sort(group) for group in np.array_split(rng.permutation(batches), groups)], 1
    # Cut elsewhere each time, so that neighbours are parted in few rounds.
    cuts = np.arange(int(rng.integers(1, stretch + 1)), batches, stretch)
    return np.split(np.arange(batches), cuts), _ROUNDS_AT_ONCE


def measure_objective(affinity: Affinity, seats: Seats, penalty: float) -> float:
    """Returns sum_i log Z_i, nats, less `penalty` for each ordered pair of `affinity.costs` within a batch."""
    together = np.repeat(seats.part, np.diff(affinity.starts)) == seats.part[affinity.ids]
    # Each ordered pair of a cost stands with both of its rows.
    return float(np.log(seats.z).sum() - penalty * affinity.costs[together].sum() / 2)


def take_seats(affinity: Affinity, order: np.ndarray, batch_size: int) -> Seats:
    """Returns an (m,) order, blocks of `batch_size` being batches, with Z of each row, in O(m k); copies are made."""
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    part = place // np.int32(batch_size)
    return Seats(order.astype(np.int32), place, part, _sum_within(affinity, part))


@njit(cache=True, nogil=True)
def _sum_within(graph: Affinity, part: np.ndarray) -> np.ndarray:
    """Returns Z of each row, in its own unit."""
    m = len(part)
    z = np.ones(m)
    for i in range(m):
        for e in range(graph.starts[i], graph.starts[i + 1]):
            if part[graph.ids[e]] == part[i]:
                z[i] += graph.gives[e]
    return z


@njit(cache=True, nogil=True, forceinline=True)
def _draw(state: np.ndarray, count: int) -> int:
    """Returns a number in 0..count - 1 and moves the state on (64-bit xorshift)."""
    word = state[0]
    word ^= word << np.uint64(13)
    word ^= word >> np.uint64(7)
    word ^= word << np.uint64(17)
    state[0] = word
    # The upper half times count, and its upper half: a remainder would cost a division.
    return np.int64(((word >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32))  # type: ignore[return-value]


@njit(cache=True, nogil=True, forceinline=True)
def _propose(
    graph: Affinity, seats: Seats, size: int, batches: np.ndarray, mine: np.ndarray, state: np.ndarray
) -> tuple:  # type: ignore[type-arg]
    """Returns a row, and a row to exchange it with from the batch of one of its neighbours; (-1, -1) for none."""
    i = seats.order[batches[_draw(state, len(batches))] * size + _draw(state, size)]
    degree = graph.starts[i + 1] - graph.starts[i]
    if degree == 0:
        return -1, -1
    best = -1
    for _ in range(3):
        e = graph.starts[i] + _draw(state, degree)
        worth = graph.gives[e] + graph.takes[e]
        if mine[seats.part[graph.ids[e]]] and (best < 0 or worth > graph.gives[best] + graph.takes[best]):
            best = e
    if best < 0 or seats.part[graph.ids[best]] == seats.part[i]:
        return -1, -1
    target, k = seats.part[graph.ids[best]], -1
    for _ in range(4):
        c = seats.order[target * size + _draw(state, size)]
        if c != graph.ids[best] and (k < 0 or seats.z[c] < seats.z[k]):
            k = c
    return i, k


@njit(cache=True, nogil=True, forceinline=True)
def _lift(
    graph: Affinity, part: np.ndarray, i: int, other: int, change: np.ndarray, touched: np.ndarray, noted: int
) -> tuple:  # type: ignore[type-arg]
    """Notes how Z of others changes as i takes the place of `other`; returns Z of i there, costs, and the count noted."""
    source, target = part[i], part[other]
    own, costs = 1.0, 0
    for e in range(graph.starts[i], graph.starts[i + 1]):
        c = graph.ids[e]
        batch = part[c]
        if (batch != target and batch != source) or c == other:
            continue
        takes = graph.takes[e]
        if batch == source:
            costs -= graph.costs[e]
            takes = -takes
        else:
            costs += graph.costs[e]
            own += graph.gives[e]
        # A row that takes nothing must stay out of the list, or the other lift would note it twice.
        if takes == 0.0:
            continue
        if change[c] == 0.0:
            touched[noted] = c
            noted += 1
        change[c] += takes
    return own, costs, noted


@njit(cache=True, nogil=True, forceinline=True)
def _try_swap(
    graph: Affinity, seats: Seats, i: int, k: int, change: np.ndarray, touched: np.ndarray, penalty: float
) -> tuple:  # type: ignore[type-arg]
    """Returns what the objective gains if i and k change places, their new Z, and how many others are noted."""
    z = seats.z
    z_i, costs, noted = _lift(graph, seats.part, i, k, change, touched, 0)
    z_k, more, noted = _lift(graph, seats.part, k, i, change, touched, noted)
    gain = -penalty * (costs + more)
    # Products in place of logarithms: one for all rows that a swap touches.
    above, below = z_i * z_k, z[i] * z[k]
    for t in range(noted):
        row = touched[t]
        above *= max(z[row] + change[row], 1.0)
        below *= z[row]
        if above > _LARGE or below > _LARGE:
            gain += math.log(above / below)
            above = below = 1.0
    return gain + math.log(above / below), (z_i, z_k), noted


@njit(cache=True, nogil=True, forceinline=True)
def _exchange(seats: Seats, i: int, k: int, lifted: tuple) -> None:  # type: ignore[type-arg]
    """Lets i and k change places and notes their new Z."""
    order, place, part, z = seats.order, seats.place, seats.part, seats.z
    z[i], z[k] = lifted
    part[i], part[k] = part[k], part[i]
    place[i], place[k] = place[k], place[i]
    order[place[i]], order[place[k]] = i, k


@njit(cache=True, nogil=True)
def _swap_rows(  # noqa: PLR0913 - compiled: what its callers hold in objects comes one by one
    graph: Affinity,
    seats: Seats,
    size: int,
    penalty: float,
    scratch: tuple,  # type: ignore[type-arg]
    batches: np.ndarray,
    moves: int,
    heat: float,
    state: np.ndarray,
) -> None:
    """Tries swaps among the batches of one group, in place; of other rows only the batch is read.

    `scratch` is (batches,) bool and (m,) float64, all zero before and after. `state` is that of `_draw`.
    """
    mine, change = scratch
    mine[batches] = True
    # Two batches and two lifts; changes are all zero between moves.
    touched = np.empty(4 * size + 16, np.int64)
    tried = 0
    # Where most rows have no neighbour in another batch of the group, proposals end before moves do.
    for _ in range(moves * 16):
        if tried >= moves:
            break
        i, k = _propose(graph, seats, size, batches, mine, state)
        if k < 0:
            continue
        tried += 1
        gain, lifted, noted = _try_swap(graph, seats, i, k, change, touched, penalty)
        taken = gain >= 0 or _draw(state, 1 << 31) / 2147483648.0 < math.exp(gain / heat)
        for t in range(noted):
            row = touched[t]
            if taken:
                seats.z[row] = max(seats.z[row] + change[row], 1.0)
            change[row] = 0.0
        if taken:
            _exchange(seats, i, k, lifted)
    mine[batches] = False
