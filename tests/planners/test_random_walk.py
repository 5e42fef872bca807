"""Random walks: the graph against brute force over the same candidates, and what a batch may hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcbs_st.planners import random_walk
from gcbs_st.planners.random_walk import RandomWalkPlanner, _draw_candidates, _walk

SEED = np.uint64(11)


def unit_rows(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    """(n, d) float32 random unit rows."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def plan(anchors: np.ndarray, positives: np.ndarray, batch_size: int, seed: int = 3, **options) -> np.ndarray:
    """The order of a new planner with a new generator."""
    options = {"candidates": 20, "neighbors": 5, **options}
    return RandomWalkPlanner(**options).plan(anchors, positives, batch_size, np.random.default_rng(seed))


def draw(n: int, own: int, wanted: int, seed: int = 11) -> np.ndarray:
    """The candidates of one row."""
    drawn = np.empty(wanted, dtype=np.int32)
    _draw_candidates(n, own, np.uint64(seed), np.full(n, -1, dtype=np.int32), drawn)
    return drawn


def reachable(graph: np.ndarray, start: int) -> set[int]:
    """All rows that some path leads to."""
    found, waiting = {start}, [start]
    while waiting:
        new = set(graph[waiting.pop()].tolist()) - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize("candidates", [49, 60])
def test_graph_of_all_candidates_is_exact(candidates):
    """With all others as candidates the neighbours are the most similar positives, the own one left out."""
    anchors, positives = unit_rows(50), unit_rows(50, seed=1)
    products = anchors @ positives.T
    np.fill_diagonal(products, -np.inf)
    expected = np.sort(np.argsort(-products, axis=1)[:, :6], axis=1)
    found = RandomWalkPlanner(candidates=candidates, neighbors=6)._find_neighbors(anchors, positives, SEED)
    assert expected.tolist() == np.sort(found, axis=1).tolist()


def test_graph_keeps_the_best_of_the_drawn(monkeypatch):
    """Of the very candidates that a row draws it keeps the most similar; chunks do not show."""
    monkeypatch.setattr("gcbs_st.planners.random_walk._CHUNK_ROWS", 7)
    anchors, positives = unit_rows(50), unit_rows(50, seed=1)
    found = RandomWalkPlanner(candidates=20, neighbors=6)._find_neighbors(anchors, positives, SEED)
    for i in range(50):
        drawn = draw(50, i, 20)
        best = drawn[np.argsort(-(positives[drawn] @ anchors[i]))[:6]]
        assert sorted(best.tolist()) == sorted(found[i].tolist())


def test_candidates_are_distinct_others_equally_often():
    """A draw holds no row twice and never the own one; over many seeds each other row comes equally often."""
    counts = np.zeros(10)
    for seed in range(2000):
        drawn = draw(10, 4, 3, seed)
        assert 3 == len(set(drawn.tolist()))
        counts[drawn] += 1
    assert 0 == counts[4]
    # 600 expected, standard deviation 20.
    assert 500 < np.delete(counts, 4).min() <= np.delete(counts, 4).max() < 700


def test_batches_are_reachable_from_their_first_row():
    """Without a refill all rows of a batch lie on paths from its start, in the paper's mode as in the other."""
    graph = np.kron(np.ones((4, 1), dtype=np.int32), np.arange(12)[:, None]).reshape(4, 12)
    graph = np.stack([np.roll(block, -1) + 12 * g for g, block in enumerate(graph)]).reshape(48, 1).astype(np.int32)
    for exact_cover in (True, False):
        order = _walk(graph, 12, 0.05, 100_000, exact_cover, SEED)
        for batch in order.reshape(4, 12).tolist():
            assert set(batch) <= reachable(graph, batch[0])


def test_starts_are_rows_of_no_earlier_batch():
    """In the paper's mode too a batch starts with a row that no earlier batch holds."""
    rows = unit_rows(200)
    order = plan(rows, rows, 10, exact_cover=False)
    for batch in range(1, 20):
        assert order[10 * batch] not in order[: 10 * batch]


def test_walk_passes_through_covered_rows():
    """On a ring, where each row leads to the next only, later walks go on through rows already taken."""
    ring = np.roll(np.arange(30), -1).astype(np.int32)[:, None]
    order = _walk(ring, 10, 0.0, 100, True, SEED)
    for batch in range(3):
        left = sorted(
            set(range(30)) - set(order[: 10 * batch].tolist()), key=lambda r, s=order[10 * batch]: (r - s) % 30
        )
        assert left[:10] == order[10 * batch : 10 * batch + 10].tolist()


def test_walk_stays_near_its_start():
    """A higher probability of return keeps a walk on a ring nearer to its start; certain return goes nowhere."""
    ring = np.roll(np.arange(1000), -1).astype(np.int32)[:, None]
    order = _walk(ring, 50, 0.0, 60, False, SEED).reshape(20, 50)
    assert [list(range(50))] * 20 == ((order - order[:, :1]) % 1000).tolist()
    order = _walk(ring, 50, 1.0, 60, False, SEED).reshape(20, 50)
    assert 10 < ((order - order[:, :1]) % 1000 >= 50).sum(axis=1).min()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 70), b=st.integers(1, 20), seed=st.integers(0, 99), m=st.integers(1, 80), exact=st.booleans())
def test_every_row_once_or_distinct_in_a_batch(n, b, seed, m, exact):
    """Exact cover gives a bijection, the other mode whole batches of distinct rows; threads do not matter."""
    rows = unit_rows(n, 4, seed)
    options = {"candidates": m, "neighbors": min(m, 6), "exact_cover": exact}
    order = plan(rows, rows, b, seed, threads=1, **options)
    if exact:
        assert list(range(n)) == sorted(order.tolist())
    else:
        assert (n // b * b,) == order.shape
        assert [b] * (n // b) == [len(set(batch)) for batch in order.reshape(-1, b).tolist()]
    assert np.int64 == order.dtype
    assert order.tolist() == plan(rows, rows, b, seed, threads=3, **options).tolist()


def test_other_seed_other_plan():
    """The plan follows its generator."""
    rows = unit_rows(60)
    assert plan(rows, rows, 10, seed=1).tolist() != plan(rows, rows, 10, seed=2).tolist()


def test_a_plan_with_repeats_says_so():
    """The property tells the modes apart, and rows do come again in the paper's mode."""
    rows = unit_rows(200)
    assert RandomWalkPlanner().covers_each_row_once
    assert not RandomWalkPlanner(exact_cover=False).covers_each_row_once
    assert len(set(plan(rows, rows, 10, exact_cover=False).tolist())) < 200


@pytest.mark.parametrize("exact_cover", [True, False])
@pytest.mark.parametrize("steps_per_row", [100, 0])
def test_groups_smaller_than_a_batch_end(monkeypatch, exact_cover, steps_per_row):
    """Where fewer rows than a batch can be reached, random rows fill it up and the plan ends."""
    monkeypatch.setattr(random_walk, "_STEPS_PER_ROW", steps_per_row)
    rows = np.kron(np.eye(2), unit_rows(6, 4) ** 2 + 0.1).astype(np.float32)
    order = plan(rows, rows, 8, candidates=12, neighbors=3, exact_cover=exact_cover)
    assert 8 == len(set(order[:8].tolist()))
    assert (12 if exact_cover else 8) == len(order)


def test_clusters_share_batches():
    """With a batch a cluster and exact neighbours, most of a batch comes from its start's cluster."""
    centres = np.eye(10, dtype=np.float32)
    rows = np.repeat(centres, 10, axis=0) + 0.1 * unit_rows(100, 10)
    batches = plan(rows, rows, 10, candidates=100, neighbors=9).reshape(10, 10)
    assert 8 <= np.mean([(batch // 10 == batch[0] // 10).sum() for batch in batches])


@pytest.mark.parametrize("n", [0, 1, 11, 12, 13, 60])
def test_all_rows_equal(n):
    """Rows that are all alike give every row once."""
    rows = np.repeat(unit_rows(1), n, axis=0)
    assert list(range(n)) == sorted(plan(rows, rows, 12).tolist())


def test_epoch_lowers_the_restart_as_in_the_released_code(monkeypatch):
    """The probability falls by 0.02 an epoch down to 0.05; a lower start stays as it is."""
    seen = []
    monkeypatch.setattr("gcbs_st.planners.random_walk._walk", lambda graph, b, restart, *rest: seen.append(restart))
    rows = unit_rows(30)
    for options in ({}, {"epoch": 2}, {"epoch": 50}, {"restart": 0.01, "epoch": 9}):
        plan(rows, rows, 10, **options)
    assert [0.2, 0.16, 0.05, 0.01] == seen


def test_nonfinite_rows_are_refused():
    """NaN raises."""
    rows = unit_rows(20)
    rows[3, 1] = np.nan
    with pytest.raises(ValueError, match="anchors: 1 of 20 embeddings hold NaN"):
        plan(rows, rows, 4)


@pytest.mark.parametrize(
    ("option", "value"),
    [("candidates", 0), ("neighbors", 0), ("neighbors", 1001), ("restart", -0.1), ("restart", 1.1),
     ("epoch", -1), ("threads", -1)],
)  # fmt: skip
def test_options_out_of_range_are_refused(option, value):
    """The message names the option and what it got."""
    with pytest.raises(ValueError, match=rf"{option}: got {value}"):
        RandomWalkPlanner(**{option: value})
