"""A plan in the making: which batch each row sits in, and how many rows of each batch hold a value.

Compiled with numba, as whatever looks at single rows of a large plan; `separation` and `chains` are made of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit


class Holdings(NamedTuple):
    """The values of n rows. Row i holds values[starts[i]:starts[i + 1]], each once."""

    starts: np.ndarray  # (n + 1,) int64
    values: np.ndarray  # (entries,) int32 in 0..value_count-1
    # (entries,) bool. Two rows are in each other's way if they share a value which one of them holds strongly; a
    # value that both hold weakly, a negative of either, is in nobody's way.
    strong: np.ndarray
    value_count: int  # the number of values


class Table(NamedTuple):
    """How many rows of a batch hold a value, for all pairs of both that occur: a hash table with open addresses."""

    keys: np.ndarray  # (size,) int64, batch * value_count + value; -1 at empty addresses
    strong: np.ndarray  # (size,) int32 rows of the batch that hold the value strongly
    weak: np.ndarray  # (size,) int32 rows that hold it weakly
    used: np.ndarray  # (1,) int64 addresses in use


class State(NamedTuple):
    """A plan in the making."""

    batches: np.ndarray  # (k, b) int64 rows
    batch_of: np.ndarray  # (n,) int64 batch of each row, -1 of rows that are in none
    slot_of: np.ndarray  # (n,) int64 place within its batch
    # (values,) int64 rows of a batch that may hold a value strongly: 1, or more where there are too many.
    most: np.ndarray
    avoids: np.ndarray  # (values,) bool: rows that hold it weakly have to keep away from those that hold it strongly


def entries_of(held: Holdings, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (e,) places in an (m,) order and (e,) entries of `held`: all values of the rows at these places."""
    counts = np.diff(held.starts)[order]
    places = np.repeat(np.arange(len(order)), counts)
    within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places, within + held.starts[order][places]


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
    """Returns the table, or where more than half of it is in use a new one without keys that count nothing."""
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
    """Counts a row in (change 1) or out (-1) of a batch."""
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
    """Returns how many rows of a batch a row is, or would be, in the way of, not counting row `without` (-1: none)."""
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
    """Exchanges two rows of different batches."""
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
    """Returns a random number in 0..below-1 and advances the state, which is one number (splitmix64)."""
    random[0] += np.uint64(0x9E3779B97F4A7C15)
    bits = random[0]
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64(((bits ^ (bits >> np.uint64(31))) >> np.uint64(1)) % np.uint64(below))  # type: ignore[return-value]
