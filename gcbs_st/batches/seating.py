"""A plan in the making: which batch each row sits in, and how many rows of each batch hold a value.

Compiled with numba, as whatever looks at single rows of a large plan; `separation` and `chains` are made of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit


class Holdings(NamedTuple):
    """The values of n rows. Row i holds values[starts[i]:starts[i + 1]], each once.

    Attributes:
        starts: (n + 1,) int64.
        values: (entries,) int32, 0 to the number of values.
        strong: (entries,) bool. Two rows are in each other's way if they share a value which one of them holds
            strongly; a value that both hold weakly, a negative of either, is in nobody's way.
        value_count: the number of values.
    """

    starts: np.ndarray
    values: np.ndarray
    strong: np.ndarray
    value_count: int


class Table(NamedTuple):
    """How many rows of a batch hold a value, for all pairs of both that occur: a hash table with open addresses.

    Attributes:
        keys: (size,) int64, batch * number of values + value; -1 where nothing is.
        strong: (size,) int32 rows of the batch that hold the value strongly.
        weak: (size,) int32 rows that hold it weakly.
        used: (1,) int64 addresses in use.
    """

    keys: np.ndarray
    strong: np.ndarray
    weak: np.ndarray
    used: np.ndarray


class State(NamedTuple):
    """A plan in the making.

    Attributes:
        batches: (k, b) int64 rows.
        batch_of: (n,) int64 batch of each row, -1 of rows that are in none.
        slot_of: (n,) int64 place within its batch.
        most: (values,) int64 rows of a batch that may hold a value strongly: 1, or more where there are too many.
        avoids: (values,) bool: rows that hold it weakly have to keep away from those that hold it strongly.
    """

    batches: np.ndarray
    batch_of: np.ndarray
    slot_of: np.ndarray
    most: np.ndarray
    avoids: np.ndarray


def entries_of(held: Holdings, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (e,) places in an order and (e,) entries of `held`: all values of the rows at these places.

    Args:
        held: the values of all rows.
        order: (m,) rows.
    """
    counts = np.diff(held.starts)[order]
    places = np.repeat(np.arange(len(order)), counts)
    within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places, within + held.starts[order][places]


def seat_all(state: State, order: np.ndarray) -> None:
    """Takes an order's blocks as batches."""
    count, size = state.batches.shape
    state.batches[:] = order.reshape(count, size)
    state.batch_of[state.batches] = np.arange(count)[:, None]
    state.slot_of[state.batches] = np.arange(size)


@njit(cache=True)
def make_table(held: Holdings, state: State) -> Table:
    """Returns the table of a plan."""
    entries = 0
    for row in state.batches.ravel():
        entries += held.starts[row + 1] - held.starts[row]
    size = 64
    while size < 4 * entries:
        size *= 2
    table = Table(np.full(size, -1), np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(1, np.int64))
    for row in state.batches.ravel():
        note(held, table, row, state.batch_of[row], 1)
    return table


@njit(cache=True)
def with_room(held: Holdings, state: State, table: Table) -> Table:
    """Returns the table, or a new one without what is no longer there where more than half of it is in use."""
    return table if 2 * table.used[0] <= len(table.keys) else make_table(held, state)  # type: ignore[no-any-return]


@njit(cache=True)
def _address(table: Table, key: int) -> np.int64:
    """Returns where a key stands, or the empty address that it would take."""
    mask = len(table.keys) - 1
    bits = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    at = np.int64((bits ^ (bits >> np.uint64(32))) & np.uint64(mask))
    while table.keys[at] != key and table.keys[at] >= 0:
        at = (at + 1) & mask
    return at


@njit(cache=True)
def note(held: Holdings, table: Table, row: int, batch: int, change: int) -> None:
    """Counts a row in (1) or out (-1) of a batch."""
    for e in range(held.starts[row], held.starts[row + 1]):
        key = batch * held.value_count + held.values[e]
        at = _address(table, key)
        if table.keys[at] < 0:
            table.keys[at] = key
            table.used[0] += 1
        if held.strong[e]:
            table.strong[at] += change
        else:
            table.weak[at] += change


@njit(cache=True)
def clashes(held: Holdings, state: State, table: Table, row: int, batch: int, without: int) -> int:
    """Returns what a row would be in the way of in a batch, whether it is in it or not, if another were not there."""
    found, inside = 0, state.batch_of[row] == batch
    for e in range(held.starts[row], held.starts[row + 1]):
        value = held.values[e]
        at = _address(table, batch * held.value_count + value)
        if table.keys[at] < 0:
            continue
        strong, weak = table.strong[at], table.weak[at]
        if inside:
            strong -= held.strong[e]
            weak -= not held.strong[e]
        if without >= 0:
            for other in range(held.starts[without], held.starts[without + 1]):
                if held.values[other] == value:
                    strong -= held.strong[other]
                    weak -= not held.strong[other]
        if held.strong[e]:
            found += max(0, strong + 1 - state.most[value]) + (weak if state.avoids[value] else 0)
        elif state.avoids[value]:
            found += strong
    return found


@njit(cache=True)
def swap(held: Holdings, state: State, table: Table, row: int, other: int) -> None:
    """Lets two rows of different batches change places."""
    for one in (row, other):
        note(held, table, one, state.batch_of[one], -1)
    state.batch_of[row], state.batch_of[other] = state.batch_of[other], state.batch_of[row]
    state.slot_of[row], state.slot_of[other] = state.slot_of[other], state.slot_of[row]
    for one in (row, other):
        state.batches[state.batch_of[one], state.slot_of[one]] = one
        note(held, table, one, state.batch_of[one], 1)


@njit(cache=True)
def is_free(held: Holdings, state: State, table: Table, row: int) -> bool:
    """Returns whether a row meets nothing in its batch that it could avoid."""
    if held.starts[row] == held.starts[row + 1]:
        return True
    return clashes(held, state, table, row, state.batch_of[row], -1) == 0  # type: ignore[no-any-return]


@njit(cache=True)
def draw_below(random: np.ndarray, below: int) -> int:
    """Returns a random number of 0 to below - 1, from a state that is one number (splitmix64)."""
    random[0] += np.uint64(0x9E3779B97F4A7C15)
    bits = random[0]
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64(((bits ^ (bits >> np.uint64(31))) >> np.uint64(1)) % np.uint64(below))  # type: ignore[return-value]
