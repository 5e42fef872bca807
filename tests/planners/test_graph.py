"""The neighbour graphs against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from gcbs_st.planners.algorithms import graph


def unit_rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    """(n, d) float32 random unit rows."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def brute_force(anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, k: int) -> np.ndarray:
    """(m, k) cosines of each row's nearest positives, its own left out by id; -inf where there are fewer."""
    cosines = anchors[order].astype(np.float64) @ positives[order].astype(np.float64).T
    np.fill_diagonal(cosines, -np.inf)
    found = np.full((len(order), k), -np.inf)
    falling = -np.sort(-cosines, axis=1)[:, :k]
    found[:, : falling.shape[1]] = falling
    return found


def find(how: str, anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, k: int):
    """The neighbours by either search, in cells with all of them probed."""
    if how == "exact":
        return graph.find_exactly(anchors, positives, order, k)
    return graph.find_in_cells(anchors, positives, order, k, probes=1000)


@pytest.mark.parametrize("how", ["cells", "exact"])
@pytest.mark.parametrize(("n", "k"), [(1, 3), (3, 5), (700, 7), (513, 1)])
def test_neighbors_are_those_of_brute_force(how, n, k):
    """Both searches give the nearest rows but the own one, and -1 where there are fewer than k."""
    anchors, positives = unit_rows(n), unit_rows(n, seed=1)
    order = np.random.default_rng(2).permutation(n)
    ids, cosines = find(how, anchors, positives, order, k)
    np.testing.assert_allclose(cosines, brute_force(anchors, positives, order, k), atol=1e-6)
    held = ids >= 0
    assert np.array_equal(held, np.isfinite(cosines))
    rows = np.repeat(np.arange(n), held.sum(axis=1))
    products = (anchors[order[rows]] * positives[order[ids[held]]]).sum(axis=1)
    np.testing.assert_allclose(cosines[held], products, atol=1e-6)


@pytest.mark.parametrize("how", ["cells", "exact"])
def test_own_row_is_left_out_by_id(how):
    """Among duplicates the own row is none of the neighbours, whichever of the equal hits comes first."""
    rows = np.repeat(unit_rows(40), 5, axis=0)
    ids, cosines = find(how, rows, rows, np.arange(200), 4)
    assert not (ids == np.arange(200)[:, None]).any()
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
    assert all(len(set(row)) == 4 for row in ids.tolist())


def test_threads_do_not_change_the_neighbors():
    """One thread and three find the same."""
    anchors, positives = unit_rows(900), unit_rows(900, seed=1)
    found = [graph.find_in_cells(anchors, positives, np.arange(900), 5, probes=2, threads=t) for t in (1, 3)]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_background_is_the_mean_of_strangers():
    """Own cosines and the mean excess of the rows below all neighbours, by definition."""
    anchors, positives = unit_rows(60), unit_rows(60, seed=1)
    order = np.arange(60)
    _, cosines = graph.find_exactly(anchors, positives, order, 5)
    own, mean = graph.measure_background(anchors, positives, order, cosines, scale=20.0, rng=np.random.default_rng(0))
    scores = anchors @ positives.T
    np.testing.assert_allclose(own, np.diag(scores), atol=1e-6)
    for i in range(60):
        strange = np.delete(scores[i], i)[np.delete(scores[i], i) < cosines[i, -1] - 1e-6]
        assert np.exp(20 * (strange - own[i])).mean() == pytest.approx(mean[i], rel=1e-2)


def test_edges_are_dropped_by_rank():
    """The top ranks go, so many after them stay, and of those only the mutual ones where asked."""
    ids = np.array([[1, 2, 3], [0, 3, 2], [3, 0, 1], [0, 2, -1]], dtype=np.int32)
    assert ids.tolist() == graph.drop_edges(ids).tolist()
    expected = [[-1, 2, -1], [-1, 3, -1], [-1, 0, -1], [-1, 2, -1]]
    assert expected == graph.drop_edges(ids, drop_top=1, keep=1).tolist()
    expected = [[-1, 2, -1], [-1, -1, -1], [-1, 0, -1], [-1, -1, -1]]
    assert expected == graph.drop_edges(ids, drop_top=1, keep=1, mutual=True).tolist()


@pytest.mark.parametrize("ceiling", [None, 0.9])
def test_edges_stand_with_both_rows(ceiling):
    """What a row gives, the other takes, in both lists; costs count the ordered pairs above the ceiling."""
    n, k = 50, 6
    anchors, positives = unit_rows(n, 4), unit_rows(n, 4, seed=1)
    ids, cosines = graph.find_exactly(anchors, positives, np.arange(n), k)
    own = (anchors * positives).sum(axis=1)
    background = np.full(n, 0.1, np.float32)
    found = graph.weigh_neighbors(ids, cosines, own, background, batch_size=8, scale=2.0, ceiling=ceiling)
    weights, barred = np.zeros((n, n)), np.zeros((n, n), dtype=int)
    for i in range(n):
        for j, cosine in zip(ids[i], cosines[i], strict=True):
            weights[i, j] = max(0.0, (np.exp(2.0 * (cosine - own[i])) - 0.1) / (1 + 7 * 0.1))
            barred[i, j] = ceiling is not None and cosine > ceiling * own[i]
    gives, takes, costs = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n), dtype=int)
    for i in range(n):
        span = slice(found.starts[i], found.starts[i + 1])
        assert len(set(found.ids[span].tolist())) == len(found.ids[span])
        gives[i, found.ids[span]], takes[i, found.ids[span]] = found.gives[span], found.takes[span]
        costs[i, found.ids[span]] = found.costs[span]
    np.testing.assert_allclose(gives, weights, rtol=1e-4)
    np.testing.assert_allclose(takes, weights.T, rtol=1e-4)
    np.testing.assert_array_equal(costs, barred + barred.T)
    assert (costs.sum() > 0) == (ceiling is not None)
