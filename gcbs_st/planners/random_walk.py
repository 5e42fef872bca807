"""BatchSampler: each batch is collected by a random walk on a graph of similar rows.

In: unit rows, anchors and positives. Out: batches of rows that a walk with restarts met from a random start.
Yang et al., "BatchSampler: Sampling Mini-Batches for Contrastive Learning in Vision, Language, and Graphs",
KDD 2023, arXiv 2306.03355, and its released code.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import njit

from gcbs_st.planners.algorithms.hardest import as_float32, dot, find_hardest, push
from gcbs_st.planners.base import BasePlanner, check_least, count_threads

# Steps of a walk for each row of the batch, at most (not from the paper, whose walks do not end).
_STEPS_PER_ROW = 100
# What the probability of a restart falls to, and by how much with each epoch: the released code's.
_LEAST_RESTART, _FALL = 0.05, 0.02
_CHUNK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class RandomWalkPlanner(BasePlanner):
    """Batches from random walks with restart on a graph of similar rows.

    Each row draws `candidates` other rows and keeps the `neighbors` most similar of them, anchor to positive as in the
    loss, as its out-neighbours. A batch starts at a random row that no batch of this plan holds yet; a step returns to
    that start with probability `restart` and else goes to an out-neighbour, all equally likely; rows are collected
    until there are B.

    Where this differs from the released code, which was written for images:

    - By default (`exact_cover`) a walk passes through rows of earlier batches but collects only rows that
      are in none, so that the plan holds every row exactly once. The n % B rows left over come last.
    - With `exact_cover=False` a batch collects any row, as in the paper: (n // B * B,) row ids, distinct within a
      batch only, and NO BIJECTION. An epoch has n // B batches; the code goes on until nearly all rows were seen.
    - The code walks until it has B rows, for ever where fewer can be reached. Here a walk ends after
      100 B steps, and random rows, of those in no batch yet, fill up the batch.
    - The code draws candidates with repeats and may draw the row itself; here they are distinct others.
    - The code lowers the probability from epoch to epoch: max(0.05, restart - 0.02 * epoch), epochs counted from 1,
      the first (or the first ten) random. The trainer raises `epoch`; 0 means `restart` itself.

    Cost: n M d multiplications for M candidates (n^2 d where M is all rows) and at most 100 n steps. Memory: 8 n K
    bytes for K neighbours, and a float32 copy of positives of another type.

    Attributes:
        candidates: M, random rows that each row compares itself with; the more, the harder the batches.
        neighbors: K, how many of them it keeps, at most `candidates`; the fewer, the harder the batches.
        restart: in [0, 1], probability that a step returns to the start of the walk.
        epoch: epochs of falling so far.
        exact_cover: every row once. Otherwise the paper's own mode, see above.
        threads: at work at once on the graph, 0 for one per core; the plan does not depend on it.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(60, 8))
        >>> order = RandomWalkPlanner(neighbors=5).plan(rows, rows, 10, np.random.default_rng(0))
        >>> sorted(order.tolist()) == list(range(60))
        True
    """

    candidates: int = 1000
    neighbors: int = 100
    restart: float = 0.2
    epoch: int = 0
    exact_cover: bool = True
    threads: int = 0

    def __post_init__(self) -> None:
        """Raises a ValueError for an option out of its range."""
        check_least(1, candidates=self.candidates)
        if not 1 <= self.neighbors <= self.candidates:
            raise ValueError(f"neighbors: got {self.neighbors}, expected 1 to candidates, here {self.candidates}.")
        if not 0 <= self.restart <= 1:
            raise ValueError(f"restart: got {self.restart}, expected a probability (the paper's is 0.2).")
        check_least(0, epoch=self.epoch, threads=self.threads)

    @property
    def covers_each_row_once(self) -> bool:
        """Whether a row is in one batch only."""
        return self.exact_cover

    def order_rows(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns (n,) int64, every row once; with `exact_cover=False` (n // B * B,) with repeats.

        Two numbers are drawn from `rng`, the seeds of the candidates and of the walks.
        """
        graph_seed, walk_seed = (np.uint64(seed) for seed in rng.integers(2**63, size=2))
        graph = self._find_neighbors(anchors, positives, graph_seed)
        restart = max(min(self.restart, _LEAST_RESTART), self.restart - _FALL * self.epoch)
        return _walk(graph, batch_size, restart, _STEPS_PER_ROW * batch_size, self.exact_cover, walk_seed)

    def _find_neighbors(self, anchors: np.ndarray, positives: np.ndarray, seed: np.uint64) -> np.ndarray:
        """The (n, k) int32 out-neighbours, in no order, k being at most n - 1."""
        n = len(anchors)
        k = min(self.neighbors, n - 1)
        if k < 1:
            return np.empty((n, 0), dtype=np.int32)
        if self.candidates >= n - 1:
            return find_hardest(anchors, positives, k, threads=self.threads)[0]
        positives = as_float32(positives)
        ids, best = np.full((n, k), -1, dtype=np.int32), np.full((n, k), -np.inf, dtype=np.float32)

        def search(start: int) -> None:
            rows = slice(start, start + _CHUNK_ROWS)
            _find_among_drawn(
                as_float32(anchors[rows]), positives, start, self.candidates, seed, ids[rows], best[rows]
            )

        with ThreadPoolExecutor(count_threads(self.threads)) as pool:
            list(pool.map(search, range(0, n, _CHUNK_ROWS)))
        return ids


@njit(cache=True, nogil=True)
def _next(state: np.ndarray) -> np.uint64:
    """Returns the next 64 random bits of a generator whose state is one number (splitmix64)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    bits = state[0]
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@njit(cache=True, nogil=True)
def _pick(state: np.ndarray, below: int) -> int:
    """Returns a random number of 0..below-1; below is under 2^31, so the bias is under 2^-32."""
    # Numba's int() would stay unsigned, and unsigned with signed makes floats.
    return np.int64((_next(state) >> np.uint64(1)) % np.uint64(below))  # type: ignore[return-value]


@njit(cache=True, nogil=True)
def _draw_candidates(n: int, own: int, seed: np.uint64, seen: np.ndarray, drawn: np.ndarray) -> None:
    """Fills `drawn` with distinct rows other than `own`, all sets equally likely (Floyd's algorithm).

    `seen` is (n,) scratch that must not hold `own` yet. What a row draws depends on the seed and the row only.
    """
    state = np.empty(1, np.uint64)
    state[0] = np.uint64(own)
    state[0] = _next(state) ^ seed
    wanted = len(drawn)
    for t in range(wanted):
        last = n - 1 - wanted + t
        row = _pick(state, last + 1)
        # Rows behind the own one are shifted by one, so that it is never drawn.
        row += row >= own
        if seen[row] == own:
            row = last + (last >= own)
        seen[row] = own
        drawn[t] = row


@njit(cache=True, nogil=True)
def _find_among_drawn(
    anchors: np.ndarray,
    positives: np.ndarray,
    start: int,
    wanted: int,
    seed: np.uint64,
    ids: np.ndarray,
    best: np.ndarray,
) -> None:
    """Fills ids and products with the best of each row's candidates; the first anchor is row `start`."""
    n = len(positives)
    seen, drawn = np.full(n, -1, np.int32), np.empty(wanted, np.int32)
    for r in range(len(anchors)):
        _draw_candidates(n, start + r, seed, seen, drawn)
        for t in range(wanted):
            row = int(drawn[t])
            push(dot(anchors, r, positives, row), row, ids[r], best[r])


@njit(cache=True, nogil=True)
def _take(row: int, left: np.ndarray, place: np.ndarray, count: int) -> int:
    """Takes a row out of the `count` rows in no batch yet, if it is among them; returns how many are left."""
    if place[row] < 0:
        return count
    last = left[count - 1]
    left[place[row]], place[last] = last, place[row]
    place[row] = -1
    return count - 1


@njit(cache=True, nogil=True)
def _walk(graph: np.ndarray, b: int, restart: float, max_steps: int, exact_cover: bool, seed: np.uint64) -> np.ndarray:
    """Returns the order: n // b batches, each from one walk, and with exact cover the rows left over."""
    n, k = graph.shape
    state = np.empty(1, np.uint64)
    state[0] = seed
    order = np.empty(n if exact_cover else n // b * b, np.int64)
    left, place, count = np.arange(n), np.arange(n), n
    batch_of = np.full(n, -1)
    at = 0
    for batch in range(n // b):
        start = left[_pick(state, count)]
        row, step, end = start, 0, at + b
        while at < end:
            if batch_of[row] != batch and not (exact_cover and place[row] < 0):
                count = _take(row, left, place, count)
                batch_of[row] = batch
                order[at] = row
                at += 1
            elif step < max_steps:
                step += 1
                # 53 bits make a number in [0, 1).
                back = (_next(state) >> np.uint64(11)) * 2.0**-53 < restart
                row = start if back else graph[row, _pick(state, k)]
            else:
                row = left[_pick(state, count)] if count else _pick(state, n)
    while at < len(order):
        order[at] = left[_pick(state, count)]
        count = _take(order[at], left, place, count)
        at += 1
    return order
