"""Rows that share a value are kept out of one batch wherever that can be, and otherwise as far as possible."""

from __future__ import annotations

import time
from itertools import permutations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gcbs_st.batches.seating import Holdings
from gcbs_st.batches.separation import find_clashes, separate_rows


def holdings(values: list[list[int]], weak: list[list[int]] | None = None) -> Holdings:
    """The values of rows, strong ones and weak ones; numbers may be any."""
    weak = weak or [[] for _ in values]
    rows = [
        [(v, True) for v in sorted(set(own))] + [(v, False) for v in sorted({*other} - {*own})]
        for own, other in zip(values, weak, strict=True)
    ]
    numbers = {v: i for i, v in enumerate(sorted({v for row in rows for v, _ in row}))}
    flat = [(numbers[v], strong) for row in rows for v, strong in row]
    return Holdings(
        np.cumsum([0, *map(len, rows)]),
        np.array([v for v, _ in flat], np.int32),
        np.array([strong for _, strong in flat], bool),
        len(numbers),
    )


def clashing_rows(values: list[list[int]], weak: list[list[int]], order: np.ndarray, batch_size: int) -> list[int]:
    """By definition: rows that meet, in their batch, one with which they share a value that one of both holds strongly."""
    found = []
    for batch in order.reshape(-1, batch_size).tolist():
        for row in batch:
            for other in batch:
                strong = set(values[row]) & {*values[other], *weak[other]} | set(weak[row]) & set(values[other])
                if other != row and strong:
                    found.append(row)
                    break
    return sorted(found)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], int]:
    """Strong and weak values of rows, many of them equal, and a batch size that divides the number of rows."""
    batch_size, batches = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    n = batch_size * batches
    some = st.lists(st.integers(0, draw(st.integers(1, 3 * n))), max_size=3)
    rows = st.lists(some, min_size=n, max_size=n)
    return draw(rows), draw(rows), batch_size


@settings(deadline=None, max_examples=300)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_the_rows_stay_and_fewer_of_them_clash(case, seed):
    """The same rows come out, the input is not changed, and what clashes is what the definition says."""
    values, weak, batch_size = case
    held, order = holdings(values, weak), np.random.default_rng(seed).permutation(len(values))
    before = order.copy()
    found = separate_rows(held, order, batch_size)
    assert before.tolist() == order.tolist()
    assert sorted(order.tolist()) == sorted(found.tolist())
    assert order.dtype == found.dtype
    for one in (order, found):
        clashes = sorted(one[find_clashes(held, one, batch_size)].tolist())
        assert clashing_rows(values, weak, one, batch_size) == clashes
    if not clashing_rows(values, weak, order, batch_size):
        assert order.tolist() == found.tolist()


@settings(deadline=None, max_examples=2000)
@example([[], [0], [], [1], [0, 1], [0, 1]], 2)
@given(st.lists(st.lists(st.integers(0, 5), max_size=2), min_size=6, max_size=6), st.sampled_from([2, 3]))
def test_what_can_be_separated_is(values, batch_size):
    """Against all orders of six rows."""
    weak: list[list[int]] = [[] for _ in values]
    possible = any(not clashing_rows(values, weak, np.array(order), batch_size) for order in permutations(range(6)))
    found = separate_rows(holdings(values), np.arange(6), batch_size)
    assert possible == (not clashing_rows(values, weak, found, batch_size))


@pytest.mark.parametrize("sorted_rows", [True, False])
@pytest.mark.parametrize("side", [4, 8, 16])
def test_a_latin_square_is_found(side, sorted_rows):
    """Every query with every passage, in batches of as many rows as there are queries: each batch is a perfect matching."""
    values = [[i, side + j] for i in range(side) for j in range(side)]
    order = np.arange(side * side) if sorted_rows else np.random.default_rng(1).permutation(side * side)
    found = separate_rows(holdings(values), order, side)
    assert not find_clashes(holdings(values), found, side).any()


def test_rows_without_shared_values_stay():
    """Only the row that has to move and the one it changes places with move, to the nearest batch."""
    values = [[row] for row in range(40)]
    values[17] = [16]
    found = separate_rows(holdings(values), np.arange(40), 4)
    moved = np.flatnonzero(found != np.arange(40))
    assert 2 == len(moved)
    assert sorted({*(moved // 4).tolist()}) in ([3, 4], [4, 5])


def test_copies_of_near_rows_meet_near_rows():
    """Three copies of each text, side by side: batches of near texts in place of batches of few."""
    values = [[row // 3] for row in range(960)]
    found = separate_rows(holdings(values), np.arange(960), 8)
    texts = np.array(values)[found].reshape(-1, 8)
    assert all(8 == len(set(batch)) for batch in texts.tolist())
    # A batch of 8 different texts out of 24 neighbouring rows would span 8; random ones span about 250.
    assert np.ptp(texts, axis=1).mean() < 16


def test_a_value_in_too_many_rows_is_spread_evenly():
    """40 of 192 rows in 12 batches: at most four in each."""
    values = [[0] if row < 40 else [row] for row in range(192)]
    found = separate_rows(holdings(values), np.arange(192), 16)
    assert 4 == (found.reshape(12, 16) < 40).sum(axis=1).max()


def test_a_negative_of_many_rows_may_stand_in_a_batch_twice():
    """It is in the way of that row alone whose positive it is."""
    values = [[row] for row in range(32)]
    weak = [[0] if 4 <= row < 24 else [] for row in range(32)]
    found = separate_rows(holdings(values, weak), np.arange(32), 4)
    assert not find_clashes(holdings(values, weak), found, 4).any()
    (home,) = (batch for batch in found.reshape(8, 4).tolist() if 0 in batch)
    assert all(not 4 <= row < 24 for row in home)
    counts = [sum(4 <= row < 24 for row in batch) for batch in found.reshape(8, 4).tolist()]
    assert max(counts) > 1


@pytest.mark.parametrize("rows, count", [(20_000, 100), (200_000, 4)], ids=["100 rows per text", "4 rows per text"])
def test_large_sets_take_less_than_a_second(rows, count):
    """As plans make them, equal texts side by side; what takes time to compile was compiled before."""
    separate_rows(holdings([[0], [0], [1], [2]]), np.arange(4), 2)
    size = rows // 64 * 64
    held = Holdings(
        np.arange(size + 1), (np.arange(size) // count).astype(np.int32), np.ones(size, bool), size // count + 1
    )
    began = time.perf_counter()
    found = separate_rows(held, np.arange(size), 64)
    seconds = time.perf_counter() - began
    assert not find_clashes(held, found, 64).any()
    assert seconds < 1


@pytest.mark.parametrize("values, batch_size", [([], 4), ([[1], [1]], 2), ([[1], [1]], 1)])
def test_nothing_to_be_done(values, batch_size):
    """No rows, a single batch, and batches of one row."""
    order = np.arange(len(values))
    assert order.tolist() == separate_rows(holdings(values), order, batch_size).tolist()
