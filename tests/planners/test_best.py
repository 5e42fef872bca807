"""The annealed swaps against brute force, and the planner made of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import in_batch_quality

from gcbs_st.planners import BestPlanner, BisectPlanner, PartitionPlanner
from gcbs_st.planners.algorithms import graph, swaps


def unit_rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    """(n, d) float32 random unit rows."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def topical_pairs(n: int, seed: int = 0, noise: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Anchors and positives of rows that lie around n / 20 topics."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(max(1, n // 20), 24))[rng.integers(max(1, n // 20), size=n)]
    topics = topics + noise * rng.normal(size=topics.shape)
    sides = [topics + noise * rng.normal(size=topics.shape) for _ in range(2)]
    return tuple((side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float32) for side in sides)


def make_graph(anchors, positives, k: int, b: int, *, ceiling=None, scale: float = 5.0):
    """The affinity of all rows in their given order."""
    order, rng = np.arange(len(anchors)), np.random.default_rng(0)
    ids, cosines = graph.find_exactly(anchors, positives, order, k)
    own, background = graph.measure_background(anchors, positives, order, cosines, scale=scale, rng=rng)
    return graph.weigh_neighbors(ids, cosines, own, background, batch_size=b, scale=scale, ceiling=ceiling)


def objective(affinity: graph.Affinity, part: np.ndarray, penalty: float) -> float:
    """sum_i log Z_i less the penalties, entry by entry."""
    n, total, costs = len(part), 0.0, 0
    for i in range(n):
        z = 1.0
        for e in range(affinity.starts[i], affinity.starts[i + 1]):
            if part[affinity.ids[e]] == part[i]:
                z += float(affinity.gives[e])
                costs += int(affinity.costs[e])
        total += np.log(z)
    return total - penalty * costs / 2


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), batches=st.integers(2, 40), b=st.integers(2, 9), k=st.integers(1, 12),
    ceiling=st.sampled_from([None, 0.9]),
)  # fmt: skip
def test_reported_objective_is_that_of_brute_force(seed, batches, b, k, ceiling):
    """After any swaps the objective kept by exact changes is the recomputed one, and no batch changed its size."""
    n = batches * b
    anchors, positives = unit_rows(n, 6, seed), unit_rows(n, 6, seed + 1)
    affinity = make_graph(anchors, positives, k, b, ceiling=ceiling)
    start = np.random.default_rng(seed).permutation(n)
    order, found = swaps.anneal_swaps(affinity, start, b, moves=30, heat=(1.0, 0.5), penalty=0.3, seed=seed)
    assert sorted(order.tolist()) == list(range(n))
    part = np.empty(n, dtype=int)
    part[order] = np.arange(n) // b
    assert objective(affinity, part, 0.3) == pytest.approx(found, rel=1e-6, abs=1e-6)
    before = np.empty(n, dtype=int)
    before[start] = np.arange(n) // b
    assert found >= objective(affinity, before, 0.3) - 1e-6


def test_gain_of_a_swap_is_that_of_brute_force():
    """What a swap is judged by is the difference that it makes to the objective."""
    n, b = 48, 6
    affinity = make_graph(unit_rows(n, 4), unit_rows(n, 4, seed=1), 10, b, ceiling=0.9)
    seats = swaps.take_seats(affinity, np.random.default_rng(0).permutation(n), b)
    change, touched = np.zeros(n), np.empty(4 * b + 16, np.int64)
    rng, tried = np.random.default_rng(1), 0
    for i, k in rng.integers(n, size=(200, 2)):
        if seats.part[i] == seats.part[k]:
            continue
        gain, _, noted = swaps._try_swap(affinity, seats, int(i), int(k), change, touched, 0.3)
        change[:] = 0
        assert noted == len(set(touched[:noted].tolist()))
        swapped = seats.part.copy()
        swapped[i], swapped[k] = seats.part[k], seats.part[i]
        expected = objective(affinity, swapped, 0.3) - objective(affinity, seats.part, 0.3)
        assert expected == pytest.approx(gain, abs=1e-5)
        tried += 1
    assert 100 < tried


def test_objective_with_all_neighbors_is_the_loss_itself():
    """Where the graph holds every other row, log Z is the in-batch log-sum-exp less the own product."""
    n, b = 40, 8
    anchors, positives = unit_rows(n), unit_rows(n, seed=1)
    affinity = make_graph(anchors, positives, n - 1, b, scale=20.0)
    order, found = swaps.anneal_swaps(affinity, np.arange(n), b, moves=20, seed=3)
    assert n * in_batch_quality(anchors, positives, order, b, 20.0)["train"] == pytest.approx(found, rel=1e-4)


def test_rows_without_any_neighbor_stay_in_batches():
    """A graph without edges has nothing to swap and gives the order back."""
    affinity = make_graph(unit_rows(40), unit_rows(40, seed=1), 3, 4)
    empty = graph.Affinity(np.zeros(41, np.int64), *(part[:0] for part in affinity[1:]))
    order, found = swaps.anneal_swaps(empty, np.arange(40), 4, moves=10)
    assert (list(range(40)), 0.0) == (order.tolist(), found)


@pytest.mark.parametrize("options", [{}, {"effort": 2.0}, {"ceiling": 1.0}], ids=str)
def test_threads_do_not_change_the_order(options):
    """One thread and four plan the same, with enough batches for several groups."""
    anchors, positives = topical_pairs(900)
    orders = [
        BestPlanner(threads=t, neighbors=8, **options).plan(anchors, positives, 10, np.random.default_rng(0))
        for t in (1, 4)
    ]
    assert orders[0].tolist() == orders[1].tolist()


@pytest.mark.parametrize("effort", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("noise", [0.2, 0.6, 1.5])
def test_best_closes_no_less_than_bisection(effort, noise):
    """Its in-batch loss is at least bisection's, however tight the topics are."""
    anchors, positives = topical_pairs(600, noise=noise)
    train = [
        in_batch_quality(anchors, positives, planner.plan(anchors, positives, 10, np.random.default_rng(0)), 10, 20.0)[
            "train"
        ]
        for planner in (BisectPlanner(), BestPlanner(effort=effort))
    ]
    assert train[1] >= 0.999 * train[0]


@pytest.mark.parametrize("planner", [BestPlanner, PartitionPlanner])
def test_ceiling_parts_false_negatives(planner):
    """Fewer negatives score above the own positive than without it, in batches that are about as hard."""
    anchors, positives = topical_pairs(600)
    orders = [
        made.plan(anchors, positives, 10, np.random.default_rng(0))
        for made in (planner(neighbors=150), planner(neighbors=150, ceiling=1.0))
    ]
    plain, parted = (in_batch_quality(anchors, positives, order, 10, 20.0) for order in orders)
    assert parted["false_negatives"] < 0.85 * plain["false_negatives"]
    assert 0.95 * plain["train"] < parted["train"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": 0}, "effort: got 0, expected a number above 0"),
        ({"neighbors": 0}, "neighbors: got 0, expected at least 1"),
        ({"scale": -1.0}, "scale: got -1.0"),
        ({"ceiling": 0.0}, "ceiling: got 0.0"),
        ({"clusters_per_batch": 0}, "clusters_per_batch: got 0"),
        ({"threads": -1}, "threads: got -1, expected at least 0"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options, message):
    """An option out of its range raises with what was got and expected."""
    with pytest.raises(ValueError, match=message):
        BestPlanner(**options)
