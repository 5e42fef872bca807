"""TBS: the tail against a dense one, the order against SciPy's on it, and what the swaps promise."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from gcbs_st.planners import tbs
from gcbs_st.planners.algorithms.hardest import find_hardest
from gcbs_st.planners.tbs import TailBatchPlanner, raise_worst_rows

SCALE = 20.0


def unit_rows(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    """(n, d) float32 random unit rows."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered_pairs(n: int = 240, clusters: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Anchors and positives around common centres, in random order."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, 8))[rng.integers(clusters, size=n)]
    pair = [centres + 0.4 * rng.normal(size=(n, 8)) for _ in range(2)]
    return tuple((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in pair)


def dense_tails(anchors: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """(n, k) sorted ids of each row's hardest negatives, from all products, equal ones by their id."""
    products = anchors @ positives.T
    np.fill_diagonal(products, -np.inf)
    return np.sort(np.argsort(-products, axis=1, kind="stable")[:, :k], axis=1)


def gaps(anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, b: int) -> np.ndarray:
    """Falling gaps of all rows of whole batches, from the definition."""
    sums = np.exp(SCALE * (anchors.astype(np.float64) @ positives.astype(np.float64).T))
    found = []
    for batch in order[: len(order) // b * b].reshape(-1, b):
        found += [np.log(sums[i].sum()) - np.log(sums[i, batch].sum()) for i in batch]
    return np.sort(found)[::-1]


def plan(anchors: np.ndarray, positives: np.ndarray, batch_size: int, **options) -> np.ndarray:
    """The order of a new planner."""
    return TailBatchPlanner(**options).plan(anchors, positives, batch_size, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("k", "tile"),
    [(1, None), (3, None), (49, None), (5, (7, 11))],
    ids=["1", "3", "49", "5, small tiles with shorter last ones"],
)
def test_tails_are_those_of_the_dense_products(k, tile, monkeypatch):
    """Each row keeps its own k hardest negatives, never itself; the log-sum-exp is that over all rows."""
    if tile is not None:
        monkeypatch.setattr("gcbs_st.planners.algorithms.hardest._TILE_ROWS", tile[0])
        monkeypatch.setattr("gcbs_st.planners.algorithms.hardest._TILE_COLUMNS", tile[1])
    anchors, positives = unit_rows(50), unit_rows(50, seed=1)
    ids, products, totals = find_hardest(anchors, positives, k, scale=SCALE)
    assert dense_tails(anchors, positives, k).tolist() == np.sort(ids, axis=1).tolist()
    dense = anchors @ positives.T
    np.testing.assert_allclose(products, np.take_along_axis(dense, ids.astype(int), 1), atol=1e-6)
    np.testing.assert_allclose(totals, np.log(np.exp(SCALE * dense).sum(axis=1)), atol=1e-4)


def test_equal_products_go_to_lower_ids():
    """Where products are exactly equal the lower row ids are kept."""
    rows = np.random.default_rng(0).choice([-0.5, 0.5], size=(60, 4)).astype(np.float32)
    assert dense_tails(rows, rows, 9).tolist() == np.sort(find_hardest(rows, rows, 9)[0], axis=1).tolist()


@pytest.mark.parametrize(("options", "k"), [({"quantile": 0.95}, 4), ({"quantile": 0.999}, 1), ({"neighbors": 6}, 6)])
def test_order_is_scipys_on_the_dense_tails(options, k):
    """Without refinement the order is reverse Cuthill-McKee of a dense row-by-row tail, made symmetric."""
    anchors, positives = unit_rows(80), unit_rows(80, seed=1)
    dense = np.zeros((80, 80), dtype=np.int8)
    np.put_along_axis(dense, dense_tails(anchors, positives, k), 1, axis=1)
    expected = reverse_cuthill_mckee(csr_array(dense), symmetric_mode=False)
    assert expected.tolist() == plan(anchors, positives, 8, refine=False, **options).tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [240, 245])
def test_refinement_raises_the_worst_rows(seed, n):
    """The mean gap of the worst twentieth falls, hence their in-batch sum rises, and the largest gap does not rise."""
    anchors, positives = clustered_pairs(n, seed=seed)
    before = gaps(anchors, positives, plan(anchors, positives, 12, quantile=0.95, refine=False), 12)
    order = plan(anchors, positives, 12, quantile=0.95)
    after = gaps(anchors, positives, order, 12)
    assert list(range(n)) == sorted(order.tolist())
    assert after[:12].mean() < before[:12].mean() - 0.1
    assert after[0] <= before[0] + 1e-4


def plan_in_passes(monkeypatch, passes, anchors, positives):
    """A plan after so many passes over the worst rows."""
    monkeypatch.setattr(tbs, "raise_worst_rows", partial(raise_worst_rows, passes=passes))
    return plan(anchors, positives, 12, quantile=0.95)


def test_more_passes_never_make_the_worst_rows_worse(monkeypatch):
    """Pass after pass neither the largest gap nor the mean of the worst twentieth rises."""
    anchors, positives = clustered_pairs()
    found = [
        gaps(anchors, positives, plan_in_passes(monkeypatch, passes, anchors, positives), 12)
        for passes in (1, 2, 4, 8)
    ]
    for fewer, more in zip(found, found[1:], strict=False):
        assert more[0] <= fewer[0] + 1e-4
        assert more[:12].mean() <= fewer[:12].mean() + 1e-4


def test_remainder_stays_where_it_is():
    """Rows behind the last whole batch take no part in swaps."""
    anchors, positives = clustered_pairs(245)
    plain = plan(anchors, positives, 12, quantile=0.95, refine=False)
    refined = plan(anchors, positives, 12, quantile=0.95)
    assert plain[240:].tolist() == refined[240:].tolist()
    assert plain[:240].tolist() != refined[:240].tolist()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 70), b=st.integers(1, 20), d=st.integers(1, 5), seed=st.integers(0, 99), k=st.integers(1, 80))
def test_every_row_once_whatever_the_threads(n, b, d, seed, k):
    """Any small input gives a bijection, the same one with one thread and with three."""
    anchors, positives = unit_rows(n, d, seed), unit_rows(n, d, seed + 1)
    order = plan(anchors, positives, b, neighbors=k, threads=1)
    assert list(range(n)) == sorted(order.tolist())
    assert order.tolist() == plan(anchors, positives, b, neighbors=k, threads=3).tolist()


@pytest.mark.parametrize("n", [0, 1, 11, 12, 13, 60])
def test_all_rows_equal(n):
    """Rows that are all alike give every row once."""
    rows = np.repeat(unit_rows(1), n, axis=0)
    assert list(range(n)) == sorted(plan(rows, rows, 12, neighbors=3).tolist())


def test_orthogonal_groups_keep_to_themselves():
    """Groups of a batch's size without a product between them become the batches."""
    rows = np.kron(np.eye(4), unit_rows(12, 4) ** 2 + 0.1).astype(np.float32)
    order = plan(rows, rows, 12, neighbors=3)
    assert [1] * 4 == [len(set((batch // 12).tolist())) for batch in order.reshape(4, 12)]


def test_nonfinite_rows_are_refused():
    """NaN raises."""
    rows = unit_rows(20)
    rows[3, 1] = np.nan
    with pytest.raises(ValueError, match="anchors: 1 of 20 embeddings hold NaN"):
        plan(rows, rows, 4)


@pytest.mark.parametrize(
    ("option", "value"),
    [("quantile", 0), ("quantile", 1), ("neighbors", 0), ("scale", 0), ("scale", np.inf), ("threads", -1)],
)  # fmt: skip
def test_options_out_of_range_are_refused(option, value):
    """The message names the option and what it got."""
    with pytest.raises(ValueError, match=rf"{option}.*: got .*{value}"):
        TailBatchPlanner(**{option: value})
