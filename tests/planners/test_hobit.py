"""Greedy batches against the plain greedy algorithm, and the planner made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcbs_st.planners import HobitPlanner, RandomPlanner
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.algorithms.greedy import grow_batches
from gcbs_st.planners.quality import plan_quality


def objective(weights: np.ndarray, batch: list[int]) -> float:
    """sum_q log(1 + sum_j w_qj) over a batch."""
    return sum(math.log1p(sum(float(weights[q, j]) for j in batch if j != q)) for q in batch)


def grow_slowly(weights: np.ndarray, size: int, count: int) -> list[list[int]]:
    """Batches whose every row is the one that lets the objective grow most, the objective computed anew each time."""
    left, batches = list(range(len(weights))), []
    for _ in range(count):
        batch = [left.pop(0)]
        while len(batch) < size:
            worth = [objective(weights, [*batch, row]) for row in left]
            best = max(range(len(left)), key=lambda i: (round(worth[i], 9), -left[i]))
            batch.append(left.pop(best))
        batches.append(batch)
    return batches


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000), size=st.integers(1, 6), count=st.integers(1, 5), spare=st.integers(0, 6),
    zeros=st.floats(0, 1), spread=st.floats(0.1, 4),
)  # fmt: skip
def test_lazy_choices_are_those_of_the_plain_greedy_algorithm(seed, size, count, spare, zeros, spread):
    """Row by row, ties to the first row, whatever weighs nothing."""
    rng, p = np.random.default_rng(seed), size * count + spare
    weights = np.exp(spread * rng.normal(size=(p, p))).astype(np.float32)
    weights[rng.random((p, p)) < zeros] = 0
    np.fill_diagonal(weights, 0)
    assert grow_slowly(weights, size, count) == grow_batches(weights, size, count).tolist()


def test_contradictory_rows_are_not_chosen():
    """The twin that weighs nothing to its like is left for another batch, though it is worth most to others."""
    weights = np.zeros((4, 4), np.float32)
    weights[0, 2] = weights[2, 0] = 1.0
    weights[1, 3] = weights[3, 1] = 1.0
    assert [[0, 2], [1, 3]] == grow_batches(weights, 2, 2).tolist()


@settings(max_examples=20)
@given(n=st.integers(1, 300), b=st.integers(1, 20), pool=st.integers(2, 80), swaps=st.sampled_from([0, 10]))
def test_every_row_stands_once(n, b, pool, swaps):
    """For any number of rows, also fewer than a batch, and pools smaller than two batches."""
    rng = np.random.default_rng(n)
    anchors = rng.normal(size=(n, 8)).astype(np.float32)
    planner = HobitPlanner(pool=pool, swaps=swaps, neighbors=4, contradictions=Contradictions(0.95))
    order = planner.plan(anchors, anchors + 0.1 * rng.normal(size=(n, 8)).astype(np.float32), b, rng)
    assert order.dtype == np.int64
    assert list(range(n)) == sorted(order.tolist())


def topical(n: int):
    """Pairs around n / 20 topics."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(n // 20, 24))[rng.integers(n // 20, size=n)] + 0.6 * rng.normal(size=(n, 24))
    sides = [topics + 0.6 * rng.normal(size=topics.shape) for _ in range(2)]
    return tuple((side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float32) for side in sides)


def test_no_tail_of_contradictory_batches():
    """The worst batches hold few more contradictions than the others, and fewer than those of a random plan's like."""
    anchors, positives = topical(2000)
    told = Contradictions(0.95)

    def measure(planner):
        order = planner.plan(anchors, positives, 16, np.random.default_rng(0))
        return plan_quality(anchors, positives, order, 16, sample_rows=None, contradictions=told)

    plan, greedy, plain = (
        measure(HobitPlanner(contradictions=told)), measure(HobitPlanner(contradictions=told, swaps=0)),
        measure(RandomPlanner()),
    )  # fmt: skip
    assert plan.trained_closed > greedy.trained_closed > plain.trained_closed + 0.2
    assert plan.worst_masked < greedy.worst_masked + 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pool": 1}, "pool: got 1"), ({"swaps": -1}, "swaps: got -1"), ({"scale": 0.0}, "scale: got 0.0"),
     ({"neighbors": 0}, "neighbors: got 0")],
)  # fmt: skip
def test_wrong_options_are_refused(options, message):
    """Each names the option and what it is given."""
    with pytest.raises(ValueError, match=message):
        HobitPlanner(**options)
