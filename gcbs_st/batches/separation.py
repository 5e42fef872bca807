"""Exchanges rows between batches until no batch holds a value twice: an order in, the nearest order that does it out.

A plan puts rows that share a text side by side, since they are the most similar of all, so nearly all of them have
to move, and none should move far. Three steps, each for what the one before left over:

1. Each value's rows are spread over the batches around them, one a batch, moving as little as possible (`_spread`).
2. A row goes to the batch that it was given there, or the nearest to it that can take it, in exchange for a row that
   its own batch can take (`_move_rows`).
3. Where no single exchange helps, whole chains of rows change places (`chains`).

A value in more rows than there are batches cannot be kept apart. It then stands in every batch as often as in every
other, and one time more at most.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gcbs_st.batches.chains import flip_rows
from gcbs_st.batches.seating import Holdings, State, Table, clashes, entries_of, is_free, make_table, swap, with_room

# From this share of rows that meet another on, all rows are dealt anew at once.
_DEALT_SHARE = 0.25
# Look-ups that the search for single exchanges may cost, per row and at least: a second for 200,000 rows.
_LOOKUPS_PER_ROW, _LEAST_LOOKUPS = 100, 10_000_000


def separate_rows(held: Holdings, order: np.ndarray, batch_size: int, seed: int = 0) -> np.ndarray:
    """Returns an order near to the given one in which as few rows as possible meet one that shares a value.

    The (m,) `order` holds distinct rows, m a multiple of `batch_size`. Rows that hold no value stay where they are,
    unless they change places with one that has to move. `seed` is that of the chains that are tried where no single
    exchange helps. Cost: O(m) look-ups in a hash table where rows find a place nearby; memory about 100 bytes for each
    value.
    """
    count = len(order) // batch_size
    clashing = find_clashes(held, order, batch_size)
    if count < 2 or not clashing.any():
        return order.copy()
    batch_of, slot_of = np.full((2, len(held.starts) - 1), -1)
    most, avoids = _count_holders(held, order, count)
    state = State(np.empty((count, batch_size), np.int64), batch_of, slot_of, most, avoids)
    _seat_all(state, order)
    targets = _spread(held, state)
    if clashing.mean() > _DEALT_SHARE:
        # One after the other they would be in each other's way: most batches near a row are still full of its value.
        _seat_all(state, order[np.argsort(targets[order], kind="stable")])
        targets = _spread(held, state)
    # Two functions, so that the second is compiled only where somebody needs it.
    if _move_rows(held, state, targets, max(_LEAST_LOOKUPS, _LOOKUPS_PER_ROW * len(order))) > 0:
        return np.asarray(flip_rows(held, state, seed).ravel().astype(order.dtype))
    return state.batches.ravel().astype(order.dtype)


def find_clashes(held: Holdings, order: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns (m,) bool: whether the row at each place of an order meets one in its batch that shares a value."""
    places, entries = entries_of(held, order)
    keys = (places // batch_size) * np.int64(max(held.value_count, 1)) + held.values[entries]
    distinct, inverse = np.unique(keys, return_inverse=True)
    strong = held.strong[entries]
    strongly = np.bincount(inverse, weights=strong, minlength=len(distinct))[inverse]
    weakly = np.bincount(inverse, weights=~strong, minlength=len(distinct))[inverse]
    met = np.where(strong, strongly - 1 + weakly, strongly) > 0
    found = np.zeros(len(order), bool)
    found[places[met]] = True
    return found


def _seat_all(state: State, order: np.ndarray) -> None:
    """Takes an order's blocks as batches."""
    count, size = state.batches.shape
    state.batches[:] = order.reshape(count, size)
    state.batch_of[state.batches] = np.arange(count)[:, None]
    state.slot_of[state.batches] = np.arange(size)


def _count_holders(held: Holdings, order: np.ndarray, batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns, by value, how many rows of a batch may hold it strongly, and whether weak holders keep away."""
    _, entries = entries_of(held, order)
    strongly = np.bincount(held.values[entries][held.strong[entries]], minlength=held.value_count)
    # Where a strong holder stands in every batch the weak ones have nowhere to go.
    return np.maximum(1, -(-strongly // batches)), strongly < batches


def _spread(held: Holdings, state: State) -> np.ndarray:
    """Returns (n,) int64 the batch each row should go to: that of the one of its values which most rows share."""
    order, targets = state.batches.ravel(), state.batch_of.copy()
    places, entries = entries_of(held, order)
    strong = held.strong[entries]
    places, values = places[strong], held.values[entries][strong]
    by_value = np.argsort(values, kind="stable")
    starts = np.searchsorted(values[by_value], np.arange(held.value_count + 1))
    batches = len(state.batches)
    wanted = _spread_values(places[by_value] // state.batches.shape[1], starts, state.most, batches)
    # Written in ascending order of the number of holders, so that the last one is that of the most widespread value.
    by_size = np.argsort(np.repeat(np.diff(starts), np.diff(starts)), kind="stable")
    targets[order[places[by_value]][by_size]] = wanted[by_size]
    return targets


@njit(cache=True)
def _spread_values(batch_of: np.ndarray, starts: np.ndarray, most: np.ndarray, batches: int) -> np.ndarray:
    """Sets the holders of each value one batch apart, moving little: the middle of pushing right and left."""
    wanted = np.empty(len(batch_of), np.int64)
    for value in range(len(starts) - 1):
        own, size, times = batch_of[starts[value] : starts[value + 1]], starts[value + 1] - starts[value], most[value]
        if 2 * size > batches:
            # Many such values would crowd the middle, were each of them packed around its own place.
            for j in range(size):
                wanted[starts[value] + j] = (2 * j + 1) * batches // (2 * size)
            continue
        right, left = own * times, own * times + times - 1
        for j in range(1, size):
            right[j] = max(right[j], right[j - 1] + 1)
        for j in range(size - 2, -1, -1):
            left[j] = min(left[j], left[j + 1] - 1)
        for j in range(size):
            middle = min(right[j], batches * times - size + j) + max(left[j], j)
            wanted[starts[value] + j] = middle // 2 // times
    return wanted


@njit(cache=True)
def _move_rows(held: Holdings, state: State, targets: np.ndarray, lookups: int) -> int:
    """Exchanges rows that meet another, in place; returns how many found no place."""
    table, left, stuck = make_table(held, state), np.array([lookups]), 0
    # First those that have far to go: near its own place a value's batches are still full of it. Those that stay come
    # last, and most find themselves alone by then.
    rows = state.batches.copy().ravel()
    for place in np.argsort(-np.abs(targets[rows] - state.batch_of[rows]), kind="mergesort"):
        row = rows[place]
        if not is_free(held, state, table, row):
            table = with_room(held, state, table)
            stuck += not _move_row(held, state, table, row, targets[row], left)
    return stuck


@njit(cache=True)
def _move_row(held: Holdings, state: State, table: Table, row: int, target: int, left: np.ndarray) -> bool:
    """Exchanges a row with one of the nearest batch to its target where neither clashes; returns whether it could."""
    batches = len(state.batches)
    for step in range(2 * batches):
        batch = target + (step // 2 if step % 2 else -step // 2)
        if left[0] <= 0:
            return False
        if 0 <= batch < batches and batch != state.batch_of[row]:
            left[0] -= 1
            if clashes(held, state, table, row, batch, -1) == 0 and _exchange(held, state, table, row, batch, left):
                return True
    return False


@njit(cache=True)
def _exchange(held: Holdings, state: State, table: Table, row: int, batch: int, left: np.ndarray) -> bool:
    """Exchanges a row with one of another batch that is in nobody's way in the row's own; returns whether it could."""
    home, size = state.batch_of[row], state.batches.shape[1]
    for step in range(size):
        other = state.batches[batch, (state.slot_of[row] + step) % size]
        left[0] -= 1
        if clashes(held, state, table, other, home, row) == 0:
            swap(held, state, table, row, other)
            return True
    return False
