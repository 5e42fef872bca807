"""Figures of plans of a sample, against loops over batches."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import planted_pairs

from gcbs_st.advice import plan_figures
from gcbs_st.advice.plan_figures import measure_plans, planning_seconds, share_of_group_mates, worst_false_negatives
from gcbs_st.advice.sample import Sample
from gcbs_st.batches.shared_values import SharedValues

B = 8


@pytest.fixture
def sample() -> Sample:
    """160 rows of four clusters, as rows 1000, 1002, ... of a dataset."""
    anchors, positives = planted_pairs(4, rows=40)
    return Sample(1000 + 2 * np.arange(len(anchors)), anchors, positives, 10.0, False, 0)


def test_planned_batches_are_harder_than_random_ones(sample):
    """Random batches close nothing by definition, planned ones much; false negatives are counted over all batches."""
    figures, batches = measure_plans(sample, None, B, ["bisect", "best"], scale=20.0)
    assert ["random", "bisect", "best"] == list(figures) == list(batches)
    assert 0 == figures["random"].closed < 0.3 < figures["bisect"].closed
    for name, of in figures.items():
        false = guarded = 0
        for batch in batches[name]:
            for i in batch:
                own = sample.anchors[i] @ sample.positives[i]
                scores = [sample.anchors[i] @ sample.positives[j] for j in batch if j != i]
                false += sum(score > own for score in scores)
                guarded += sum(score > own - 0.05 * abs(own) for score in scores)
        assert of.false_negatives == pytest.approx(false / batches[name].size)
        assert of.guarded == pytest.approx(guarded / (batches[name].size * (B - 1)))


def test_rows_that_must_not_meet_are_kept_apart(sample):
    """As the trainer does after each plan."""
    mates = SharedValues(np.arange(160), np.arange(160) // 2)
    _, batches = measure_plans(sample, mates, B, ["bisect"], scale=20.0)
    for batch in (*batches["random"], *batches["bisect"]):
        assert B == len(set(batch // 2))


def test_examples_are_the_highest_scores_above_the_own_positive(sample):
    """By the dataset's ids, the highest first, each row once."""
    _, batches = measure_plans(sample, None, B, ["bisect"], scale=20.0)
    expected = []
    for batch in batches["bisect"]:
        for i in batch:
            own = float(sample.anchors[i] @ sample.positives[i])
            score, other = max((float(sample.anchors[i] @ sample.positives[j]), j) for j in batch if j != i)
            if score > own:
                expected.append((score, 1000 + 2 * i, 1000 + 2 * other))
    expected.sort(key=lambda one: -one[0])
    found = worst_false_negatives(sample, batches["bisect"], 5)
    assert [one[1:] for one in expected[:5]] == [(one.row, one.other) for one in found]
    assert all(one.score > one.own for one in found)


def test_group_mates_are_told_from_strangers():
    """Rows of one cluster mean the same where clusters are tight, rows of two do not."""
    anchors, positives = planted_pairs(4, rows=40, noise=0.05)
    of_cluster = np.arange(160) % 4
    paired = np.concatenate([np.flatnonzero(of_cluster == cluster) for cluster in range(4)])
    paired = paired.reshape(4, -1, 2).swapaxes(0, 1).ravel()  # neighbours in this order are of two clusters
    mates, strangers = share_of_group_mates(anchors[paired], positives[paired])
    assert (mates > 0.9, strangers < 0.1) == (True, True)
    mixed = np.random.default_rng(0).permutation(160)
    mates, strangers = share_of_group_mates(anchors[mixed], positives[mixed])
    assert abs(mates - strangers) < 0.2


@pytest.mark.parametrize("rows", [500, 16_384, 1_000_000])
def test_seconds_are_extrapolated_from_at_most_16384_rows(monkeypatch, rows):
    """By rows times their logarithm, which is what this planner's clock says it takes."""
    now = [0.0]

    class SlowPlanner:
        def plan(self, anchors, positives, batch_size, rng):
            now[0] += len(anchors) * np.log(len(anchors))
            assert (min(rows, 16_384), 16) == anchors.shape

    monkeypatch.setattr(plan_figures, "make_planner", lambda name: SlowPlanner())
    monkeypatch.setattr(plan_figures.time, "perf_counter", lambda: now[0])
    assert planning_seconds("slow", rows, 16, B) == pytest.approx(rows * np.log(rows))
