"""Bisection, and the combination of clusters that all clustering planners share."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import in_batch_quality
from test_best import topical_pairs, unit_rows

from gcbs_st.planners import make_planner
from gcbs_st.planners.algorithms import trees
from gcbs_st.planners.algorithms.clusters import draw_rest, finish_order
from gcbs_st.planners.bisect import BisectPlanner

CLUSTERING = ["bisect", "partition", "best"]


def plan(name: str, n: int, b: int, **options) -> np.ndarray:
    """The order of topical pairs."""
    return make_planner(name, options).plan(*topical_pairs(n), b, np.random.default_rng(0))


def test_two_far_groups_are_told_apart():
    """Two groups as large as a batch become the batches, whatever order they come in."""
    rows = np.concatenate([unit_rows(16) + 20 * np.eye(16)[0], unit_rows(16, seed=1) + 20 * np.eye(16)[1]])
    shuffled = np.random.default_rng(0).permutation(32)
    order = BisectPlanner().plan(rows[shuffled], rows[shuffled], 16, np.random.default_rng(0))
    assert [set(range(16)), set(range(16, 32))] == sorted(
        (set(shuffled[part].tolist()) for part in (order[:16], order[16:])), key=min
    )


def test_leaves_are_tighter_than_random_blocks():
    """A tree's leaves have larger mean centroids than blocks of the rows as they came."""
    points = topical_pairs(600)[0].copy()
    before = trees._measure_leaves(points, 10)
    order = trees.grow_trees(points.copy(), 10, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(600))
    assert before < 0.5 * trees._measure_leaves(points[order], 10)


def test_leaf_measure_by_definition():
    """The mean over points of the squared norm of their leaf's sum."""
    points = unit_rows(60)
    expected = (points.reshape(6, 10, -1).sum(axis=1) ** 2).sum() / 60
    assert expected == pytest.approx(trees._measure_leaves(points, 10), rel=1e-5)


def test_more_trees_are_not_looser():
    """The taken tree is the tightest, the first among them."""
    points = topical_pairs(600)[0]
    found = []
    for count in (1, 6):
        order = trees.grow_trees(points.copy(), 10, np.random.default_rng(0), trees=count)
        found.append(trees._measure_leaves(points[order], 10))
    assert found[0] <= found[1]


@pytest.mark.parametrize("half", [1, 3, 7])
def test_exactly_half_is_taken(half):
    """The largest go left, equal ones in their order, never more than asked for."""
    for scores in ([3, 1, 2, 5, 4, 0, 6, 9], [1] * 8, [2, 1, 1, 1, 2, 1, 1, 0]):
        taken, threshold = trees._take_largest(np.array(scores, dtype=np.float32), half)
        assert threshold == sorted(scores, reverse=True)[half]
        assert sorted(range(8), key=lambda i, s=scores: (-s[i], i))[:half] == sorted(
            np.flatnonzero(taken), key=lambda i, s=scores: (-s[i], i)
        )


def test_threads_do_not_change_the_order():
    """One thread and four give the same order."""
    assert plan("bisect", 3000, 8, threads=1).tolist() == plan("bisect", 3000, 8, threads=4).tolist()


def test_projection_keeps_what_is_asked_for(monkeypatch):
    """All axes give anchor + positive itself; fewer give the covariance's leading ones, whole or in part."""
    anchors, positives = topical_pairs(300)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(anchors + positives, trees.project_pairs(anchors, positives, np.arange(300), rng))
    monkeypatch.setattr(trees, "DIMS", 3)
    pairs = anchors[:290] + positives[:290]
    _, vectors = np.linalg.eigh(np.cov(pairs.T))
    found = trees.project_pairs(anchors, positives, np.arange(290), rng)
    np.testing.assert_allclose(np.abs(pairs @ vectors[:, :-4:-1]), np.abs(found), atol=1e-3)


def test_rest_fills_no_batch():
    """N mod B distinct rows are left over, drawn at random, and the others are all there."""
    rows, rest = draw_rest(29, 8, np.random.default_rng(0))
    assert (24, 5) == (len(rows), len(rest))
    assert list(range(29)) == sorted([*rows, *rest])
    assert 20 < len({tuple(draw_rest(29, 8, np.random.default_rng(seed))[1]) for seed in range(30)})


# ------------------------------------------------------------------ several clusters a batch


@pytest.mark.parametrize("name", CLUSTERING)
@pytest.mark.parametrize("clusters", [2, 4])
def test_batches_are_unions_of_whole_clusters(name, clusters, monkeypatch):
    """Each batch holds whole blocks of the order as it was before its clusters were shuffled."""
    seen = []

    def note(order, rest, size, batch_size, rng):
        seen.append((order.reshape(-1, size), size))
        return finish_order(order, rest, size, batch_size, rng)

    monkeypatch.setattr(f"gcbs_st.planners.{name}.finish_order", note)
    order = plan(name, 330, 16, clusters_per_batch=clusters)
    blocks, size = seen[0]
    assert 16 // clusters == size
    owner = {int(row): number for number, block in enumerate(blocks) for row in block}
    for batch in order[:320].reshape(-1, 16):
        owners = [owner[int(row)] for row in batch]
        assert clusters == len(set(owners))
        assert {size} == {owners.count(number) for number in owners}
    assert not np.array_equal(blocks.ravel(), order[:320])


@pytest.mark.parametrize("name", CLUSTERING)
def test_more_clusters_are_less_hard(name):
    """The in-batch loss falls with the number of clusters; with one row a cluster the plan is a random one."""
    anchors, positives = topical_pairs(1600)
    losses = [
        in_batch_quality(anchors, positives, plan(name, 1600, 16, clusters_per_batch=c), 16, 20.0)["train"]
        for c in (1, 2, 4, 16)
    ]
    assert sorted(losses, reverse=True) == losses
    random = in_batch_quality(anchors, positives, np.random.default_rng(1).permutation(1600), 16, 20.0)["train"]
    assert abs(losses[-1] - random) < 0.2 * (losses[0] - random)


@pytest.mark.parametrize("name", CLUSTERING)
def test_clusters_must_divide_the_batch(name):
    """A batch that cannot be made of equal clusters is refused, also where no batch is full."""
    for n in (5, 100):
        with pytest.raises(ValueError, match="clusters_per_batch: got 3 with batches of 16 rows, expected a divisor"):
            plan(name, n, 16, clusters_per_batch=3)


@pytest.mark.parametrize("option", ["trees", "clusters_per_batch"])
def test_bad_options_are_refused(option):
    """An option below its least value raises with what was got and expected."""
    with pytest.raises(ValueError, match=f"{option}: got 0, expected at least 1"):
        BisectPlanner(**{option: 0})
