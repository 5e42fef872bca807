"""Batches made of clusters of any size: dealt, dealt anew, and without rows that stand twice."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gcbs_st.planners.algorithms.clusters import deal_clusters, redeal_clusters, rows_per_cluster, without_repeats


@settings(max_examples=80)
@given(n=st.integers(0, 200), b=st.integers(1, 20), c=st.integers(1, 20), seed=st.integers(0, 100))
def test_dealt_batches_hold_whole_clusters(n, b, c, seed):
    """Each batch starts with as many whole clusters as fit; every row stands once; n mod B rows are left at the end."""
    c, rng = min(b, c), np.random.default_rng(seed)
    order = rng.permutation(n)
    dealt = deal_clusters(order, c, b, rng)
    assert sorted(order.tolist()) == sorted(dealt.tolist())
    clusters = {tuple(order[i : i + c]) for i in range(0, n - c + 1, c)}
    for start in range(0, n // b * b, b):
        for slot in range(b // c):
            assert tuple(dealt[start + slot * c : start + (slot + 1) * c]) in clusters


@settings(max_examples=80)
@given(batches=st.integers(1, 20), b=st.integers(1, 20), c=st.integers(1, 20), seed=st.integers(0, 100))
def test_clusters_stay_whole_when_they_are_dealt_anew(batches, b, c, seed):
    """The same clusters at the starts of batches, and the same rows in all."""
    c, rng = min(b, c), np.random.default_rng(seed)
    order = deal_clusters(rng.permutation(batches * b), c, b, rng)
    again = redeal_clusters(order, c, b, rng)

    def whole(rows):
        blocks = rows.reshape(-1, b)[:, : b // c * c].reshape(-1, c)
        return sorted(map(tuple, blocks.tolist()))

    assert whole(order) == whole(again)
    assert sorted(order.tolist()) == sorted(again.tolist())


def test_clusters_meet_others_when_they_are_dealt_anew():
    """A third of the pairs of clusters would stay together by chance at most."""
    order = deal_clusters(np.arange(400), 4, 10, np.random.default_rng(0))
    again = redeal_clusters(order, 4, 10, np.random.default_rng(1))
    pairs = [
        {tuple(sorted((block[0] // 4, block[4] // 4))) for block in rows.reshape(-1, 10)} for rows in (order, again)
    ]
    assert len(pairs[0] & pairs[1]) < 5


def test_hardness_is_a_share_of_the_batch_on_a_logarithmic_scale():
    """From a row to the whole batch, rising, for any batch size."""
    for b in (1, 2, 7, 60, 64, 1000):
        sizes = [rows_per_cluster(step / 20, b) for step in range(21)]
        assert sizes[0] == 1 and sizes[-1] == b and sizes == sorted(sizes)
    assert 8 == rows_per_cluster(0.5, 64)


@settings(max_examples=60)
@given(batches=st.integers(1, 8), b=st.integers(1, 8), rows=st.integers(8, 12), seed=st.integers(0, 100))
def test_no_row_stands_twice_in_a_batch(batches, b, rows, seed):
    """What stood once stays, in its place."""
    rng = np.random.default_rng(seed)
    order = rng.integers(rows, size=batches * b)
    found = without_repeats(order, b, rows, rng).reshape(batches, b)
    for before, after in zip(order.reshape(batches, b), found, strict=True):
        assert b == len(set(after.tolist()))
        first = np.unique(before, return_index=True)[1]
        assert np.array_equal(before[first], after[first])
