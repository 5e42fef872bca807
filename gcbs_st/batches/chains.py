"""Kempe chains: rows of two batches that change sides together, since each would meet the next one there.

With two values per row, one of each column, the batches are the colours of the edges of a bipartite graph, for which
such chains suffice (Koenig 1916; with classes of equal size: de Werra 1971). Rows with more values are coloured
heuristically: exact answers are NP-hard.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from gcbs_st.batches.seating import (
    Holdings,
    State,
    Table,
    clashes,
    draw_below,
    is_free,
    make_table,
    note,
    swap,
    with_room,
)

# Pairs of batches that are tried for a row, how many of them are near, and rounds over all rows that meet another.
_TRIALS, _NEAR_TRIALS, _ROUNDS = 64, 16, 12
# Trials end after about this many steps, a second; and what a trial takes per row of a batch, as measured.
_MOST_STEPS, _STEPS_PER_ROW = 400_000_000, 200


class _Pair(NamedTuple):
    """Two batches of b rows, seen from the values that they hold. Rows are known by their place, 0 to 2 b - 1."""

    # (2 b,) bool, the batch that each row is in: at first the first b rows are in one, the others in the other.
    side: np.ndarray
    places: np.ndarray  # (e,) int64 the row of each entry; entries of one value stand side by side
    values: np.ndarray  # (e,) int64
    strong: np.ndarray  # (e,) bool, see `Holdings`
    spans: np.ndarray  # (e, 2) int64 start and end of the entries of the same value
    first: np.ndarray  # (2 b,) int64 the first entry of each row, -1 for none
    following: np.ndarray  # (e,) int64 the next entry of the same row, -1 for none


@njit(cache=True)
def flip_rows(held: Holdings, state: State, seed: int) -> np.ndarray:
    """Moves rows that still meet another, as far as chains can, and returns the (k, B) batches in which fewest do.

    `state` is left as the last trial was; `seed` draws the batches that are tried.
    """
    random, steps_left = np.array([seed], np.uint64), np.array([_MOST_STEPS])
    table = make_table(held, state)
    best, fewest = state.batches.copy(), state.batches.size + 1
    for _ in range(_ROUNDS):
        for row in state.batches.copy().ravel():
            if steps_left[0] > 0 and not is_free(held, state, table, row):
                table = with_room(held, state, table)
                _free_row(held, state, table, row, random, steps_left)
        meeting = [row for row in state.batches.ravel() if not is_free(held, state, table, row)]
        improved = len(meeting) < fewest
        if improved:
            best, fewest = state.batches.copy(), len(meeting)
        if fewest == 0 or steps_left[0] <= 0:
            break
        if not improved:  # no chain between two batches helps, so rows that meet go anywhere, from where one may
            for row in meeting:
                other = state.batches[draw_below(random, len(best)), draw_below(random, best.shape[1])]
                if state.batch_of[other] != state.batch_of[row]:
                    table = with_room(held, state, table)
                    swap(held, state, table, row, other)
    return best


@njit(cache=True)
def _free_row(
    held: Holdings, state: State, table: Table, row: int, random: np.ndarray, steps_left: np.ndarray
) -> bool:
    """Tries chains between a row's batch and others, near ones first; returns whether nothing meets it now."""
    batches, size = state.batches.shape
    for trial in range(min(_TRIALS, 4 * batches)):
        home = state.batch_of[row]
        near = home + (trial // 2 + 1) * (1 if trial % 2 else -1)
        other = near if trial < _NEAR_TRIALS and 0 <= near < batches else draw_below(random, batches)
        if other != home:
            _try_flip(held, state, table, row, other, random)
            steps_left[0] -= _STEPS_PER_ROW * size
            if clashes(held, state, table, row, state.batch_of[row], -1) == 0:
                return True
        if steps_left[0] <= 0:
            return False
    return False


@njit(cache=True)
def _try_flip(held: Holdings, state: State, table: Table, row: int, other: int, random: np.ndarray) -> None:
    """Moves a row to another batch with all that this entails, unless more rows would meet in the two batches."""
    home = state.batch_of[row]
    rows = np.concatenate((state.batches[home], state.batches[other]))
    pair = _look_at(held, rows)
    before = _count_pairs(pair, state)
    start = state.slot_of[row]
    for place in _chain(pair, state, start):
        pair.side[place] = not pair.side[place]
    if _even_out(pair, state, start, random) and _count_pairs(pair, state) <= before:
        _seat_pair(held, state, table, rows, pair.side, home, other)


@njit(cache=True)
def _look_at(held: Holdings, rows: np.ndarray) -> _Pair:
    total = 0
    for row in rows:
        total += held.starts[row + 1] - held.starts[row]
    places, values, strong = np.empty(total, np.int64), np.empty(total, np.int64), np.empty(total, np.bool_)
    at = 0
    for place in range(len(rows)):
        for e in range(held.starts[rows[place]], held.starts[rows[place] + 1]):
            places[at], values[at], strong[at] = place, held.values[e], held.strong[e]
            at += 1
    by_value = np.argsort(values, kind="mergesort")
    places, values, strong = places[by_value], values[by_value], strong[by_value]
    spans, begin = np.empty((total, 2), np.int64), 0
    first, following = np.full(len(rows), -1), np.full(total, -1)
    for e in range(total):
        if e + 1 == total or values[e + 1] != values[e]:
            spans[begin : e + 1, 0], spans[begin : e + 1, 1] = begin, e + 1
            begin = e + 1
        following[e], first[places[e]] = first[places[e]], e
    side = np.arange(len(rows)) >= len(rows) // 2
    return _Pair(side, places, values, strong, spans, first, following)


@njit(cache=True)
def _count_pairs(pair: _Pair, state: State) -> int:
    """Returns how many pairs of rows meet that could be apart."""
    found, e, total = 0, 0, len(pair.places)
    while e < total:
        value, counts = pair.values[e], np.zeros((2, 2), np.int64)
        for f in range(e, pair.spans[e, 1]):
            counts[int(pair.strong[f]), int(pair.side[pair.places[f]])] += 1
        e = pair.spans[e, 1]
        for side in range(2):
            extra = max(0, counts[1, side] - state.most[value])
            found += extra * (extra + 1) // 2
            if state.avoids[value]:
                found += counts[0, side] * counts[1, side]
    return found


@njit(cache=True)
def _chain(pair: _Pair, state: State, start: int) -> np.ndarray:
    """Returns the places of the rows that change sides together if the row at `start` does."""
    chain, taken = np.empty(len(pair.side), np.int64), np.zeros(len(pair.side), np.bool_)
    chain[0], taken[start], filled, done = start, True, 1, 0
    while done < filled:
        place = chain[done]
        done += 1
        e = pair.first[place]
        while e >= 0:
            # A value that has to stand in a batch several times moves nobody.
            if state.most[pair.values[e]] == 1:
                for f in range(pair.spans[e, 0], pair.spans[e, 1]):
                    meets = pair.side[pair.places[f]] != pair.side[place] and _in_the_way(pair, state, e, f)
                    if meets and not taken[pair.places[f]]:
                        chain[filled], taken[pair.places[f]] = pair.places[f], True
                        filled += 1
            e = pair.following[e]
    return chain[:filled]


@njit(cache=True)
def _in_the_way(pair: _Pair, state: State, e: int, f: int) -> bool:
    """Whether two entries of one value may not be in one batch."""
    if pair.strong[e] and pair.strong[f]:
        return True
    return (pair.strong[e] or pair.strong[f]) and state.avoids[pair.values[e]]  # type: ignore[no-any-return]


@njit(cache=True)
def _even_out(pair: _Pair, state: State, start: int, random: np.ndarray) -> bool:
    """Evens the sides out by chains that do not take the row at `start` back; returns whether it succeeded."""
    size = len(pair.side) // 2
    for _ in range(4 * size):
        surplus = pair.side.sum() - size
        if surplus == 0:
            return True
        picked = draw_below(random, 2 * size)
        if picked == start or pair.side[picked] != (surplus > 0):
            continue
        chain = _chain(pair, state, picked)
        leaving = 0
        for place in chain:
            leaving += 1 if pair.side[place] else -1
        if (chain != start).all() and abs(surplus - leaving) < abs(surplus):
            for place in chain:
                pair.side[place] = not pair.side[place]
    return False


@njit(cache=True)
def _seat_pair(
    held: Holdings, state: State, table: Table, rows: np.ndarray, side: np.ndarray, home: int, other: int
) -> None:
    """Moves the rows of two batches to where their sides say; those that stay keep their places."""
    size = state.batches.shape[1]
    coming = np.flatnonzero(~side[size:]) + size
    leaving = np.flatnonzero(side[:size])
    for t in range(len(leaving)):
        one, two = rows[leaving[t]], rows[coming[t]]
        note(held, table, one, home, -1)
        note(held, table, two, other, -1)
        state.batch_of[one], state.batch_of[two] = other, home
        state.slot_of[one], state.slot_of[two] = state.slot_of[two], state.slot_of[one]
        state.batches[other, state.slot_of[one]], state.batches[home, state.slot_of[two]] = one, two
        note(held, table, one, other, 1)
        note(held, table, two, home, 1)
