"""METIS partitions: parts of exactly a batch, and the options of the graph."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import in_batch_quality
from test_best import make_graph, topical_pairs, unit_rows

from gcbs_st.planners import PartitionPlanner
from gcbs_st.planners.algorithms.metis import cut_evenly, even_parts


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), parts=st.integers(1, 9), size=st.integers(1, 9))
def test_parts_are_made_even(seed, parts, size):
    """Whatever the parts were, each comes out with exactly so many rows, and every row once."""
    n = parts * size
    affinity = make_graph(unit_rows(n, 4, seed), unit_rows(n, 4, seed + 1), 4, 2)
    part = np.random.default_rng(seed).integers(parts, size=n)
    order = even_parts(affinity, part, parts, size)
    assert sorted(order.tolist()) == list(range(n))
    # A part that was not too large has kept all of its rows.
    blocks = order.reshape(parts, size)
    for p in range(parts):
        mine = set(np.flatnonzero(part == p).tolist())
        assert set(blocks[p].tolist()) >= mine if len(mine) <= size else set(blocks[p].tolist()) < mine


def test_even_parts_are_left_alone():
    """Parts of the right size keep their rows."""
    affinity = make_graph(unit_rows(40, 4), unit_rows(40, 4, seed=1), 4, 2)
    part = np.random.default_rng(0).permutation(np.repeat(np.arange(8), 5))
    assert np.argsort(part, kind="stable").tolist() == even_parts(affinity, part, 8, 5).tolist()


def test_cut_leaves_the_graph_as_it_was():
    """The affinity is shared with what comes after, so cutting it must not write into it."""
    affinity = make_graph(unit_rows(80, 4), unit_rows(80, 4, seed=1), 6, 4)
    copies = [part.copy() for part in affinity]
    order = cut_evenly(affinity, 10, 0)
    assert sorted(order.tolist()) == list(range(80))
    for part, copy in zip(affinity, copies, strict=True):
        np.testing.assert_array_equal(copy, part)


@pytest.mark.parametrize(
    "options", [{}, {"exact": True}, {"keep": 8}, {"mutual": True}, {"drop_top": 1}, {"ceiling": 1.0}], ids=str
)
def test_plans_are_harder_than_random(options):
    """With each option a plan stays harder than a random one; threads do not change it."""
    anchors, positives = topical_pairs(600)
    orders = [
        PartitionPlanner(threads=t, **options).plan(anchors, positives, 10, np.random.default_rng(0)) for t in (1, 3)
    ]
    assert orders[0].tolist() == orders[1].tolist()
    random = in_batch_quality(anchors, positives, np.random.default_rng(0).permutation(600), 10, 20.0)
    assert random["train"] + 0.05 < in_batch_quality(anchors, positives, orders[0], 10, 20.0)["train"]


def test_dropped_ranks_part_false_negatives():
    """Without its nearest neighbours among the edges a row meets fewer rows above its own positive."""
    anchors, positives = topical_pairs(600)
    found = [
        in_batch_quality(
            anchors, positives,
            PartitionPlanner(neighbors=20, drop_top=p).plan(anchors, positives, 10, np.random.default_rng(0)), 10, 20.0,
        )["false_negatives"]
        for p in (0, 10)
    ]  # fmt: skip
    assert found[1] < found[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbors": 0}, "neighbors: got 0, expected at least 1"),
        ({"drop_top": 20}, "drop_top: got 20, expected less than the 20 neighbors"),
        ({"drop_top": -1}, "drop_top: got -1, expected at least 0"),
        ({"keep": 0}, "keep: got 0, expected at least 1"),
        ({"ceiling": -1.0}, "ceiling: got -1.0, expected a number above 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    """An option out of its range raises with what was got and expected."""
    with pytest.raises(ValueError, match=message):
        PartitionPlanner(**options)
