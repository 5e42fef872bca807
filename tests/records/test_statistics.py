"""Figures of paired runs, against SciPy's own test and against what can be computed by hand."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from gcbs_st.records.run_result import RunResult
from gcbs_st.records.statistics import paired_difference, summarise, time_to_score

SCORES = st.integers(-10_000, 10_000).map(lambda number: number / 100)
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=12)


@given(PAIRS)
def test_the_interval_is_that_of_scipys_paired_test(pairs):
    """Mean and both ends agree with `ttest_rel`, which computes them on its own."""
    values, reference = zip(*pairs, strict=True)
    assume(len({round(value - other, 6) for value, other in pairs}) > 1)  # SciPy has no interval of constants
    expected = ttest_rel(values, reference).confidence_interval(0.95)
    found = paired_difference(values, reference)
    assert [expected.low, expected.high] == pytest.approx(found["interval"], abs=1e-6)
    assert sum(found["interval"]) / 2 == pytest.approx(found["mean"], abs=1e-9)


def test_the_interval_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, and the t of two degrees of freedom from a printed table."""
    found = paired_difference([11, 22, 33], [10, 20, 30])
    assert (2.0, 3, 3) == (found["mean"], found["wins"], found["pairs"])
    assert [2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5] == pytest.approx(found["interval"], abs=1e-4)


def test_one_pair_has_no_interval():
    """Of one difference the spread is not known; it is not taken for zero."""
    assert {"mean": 1.5, "interval": None, "wins": 1, "pairs": 1} == paired_difference([2.5], [1.0])


def test_equal_differences_have_an_interval_of_no_width_and_ties_are_no_wins():
    """Where SciPy has NaN the interval is the mean; equal scores are not won."""
    assert [1.0, 1.0] == paired_difference([2.0, 3.0], [1.0, 2.0])["interval"]
    assert 0 == paired_difference([1.0, 1.0], [1.0, 2.0])["wins"]


@given(PAIRS, st.data())
def test_what_a_seed_does_to_both_is_no_part_of_the_difference(pairs, data):
    """Moving both scores of any pair changes nothing, exchanging the sides turns the sign, order is no matter."""
    values, reference = (list(side) for side in zip(*pairs, strict=True))
    moves = data.draw(st.lists(SCORES, min_size=len(pairs), max_size=len(pairs)))
    plain = paired_difference(values, reference)
    moved = paired_difference(
        [v + m for v, m in zip(values, moves, strict=True)], [r + m for r, m in zip(reference, moves, strict=True)]
    )
    assert plain["interval"] == pytest.approx(moved["interval"], abs=1e-6)
    turned = paired_difference(reference, values)
    assert [-end for end in reversed(turned["interval"])] == pytest.approx(plain["interval"], abs=1e-6)
    shuffled = paired_difference(*zip(*data.draw(st.permutations(pairs)), strict=True))
    assert plain["wins"] == shuffled["wins"]
    assert plain["interval"] == pytest.approx(shuffled["interval"], abs=1e-6)


@pytest.mark.parametrize(("values", "reference"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_is_not_paired_is_refused(values, reference):
    """The numbers of both sides are named."""
    with pytest.raises(ValueError, match=f"got {len(values)} values and {len(reference)} references"):
        paired_difference(values, reference)


def test_the_first_point_at_the_target_counts():
    """Reaching it exactly counts, falling below it again does not matter, and never is None."""
    curve = [(10, 1.0, 50.0), (20, 2.5, 60.0), (30, 3.0, 55.0)]
    assert {"step": 20, "seconds": 2.5} == time_to_score(curve, 60.0)
    assert {"step": 10, "seconds": 1.0} == time_to_score(curve, 0.0)
    assert None is time_to_score(curve, 60.01)
    assert None is time_to_score([], 0.0)


def record(score, seconds, curve):
    """The result of a run of which these are known."""
    return RunResult(
        scores={"STSBenchmark-dev": score, "avg": score}, steps=30, gap_closed=0.5, seconds_total=seconds,
        dev_curve=curve, dev_steps=10, run="r", seed=1, train_loss=0.1, plans=1, seconds_training=seconds,
        seconds_embedding=0.0, seconds_planning=0.0, corpus_hash="c", training_rows=5, commit=None, python="3",
        versions={},
    )  # fmt: skip


def test_a_summary_by_hand():
    """Ratios are medians of ratios, each time is measured against the reference of its own seed."""
    slow = [(10, 5.0, 40.0), (20, 10.0, 50.0)]
    fast = [(10, 6.0, 55.0), (20, 12.0, 60.0)]
    records = {
        "random": {1: record(50.0, 10.0, slow), 2: record(58.0, 20.0, slow), 3: record(70.0, 10.0, slow)},
        "bisect": {1: record(60.0, 12.0, fast), 2: record(60.0, 60.0, fast), 3: record(60.0, 15.0, fast)},
    }
    summary = summarise(records, "random", "STSBenchmark-dev")
    bisect = summary["bisect"]
    assert 1.5 == bisect["seconds_ratio"]  # of 1.2, 3.0 and 1.5; medians of seconds would give 1.5 = 15 / 10 too
    assert 15.0 == bisect["seconds"]["median"]
    times = bisect["time_to_score"]
    assert [{"step": 10, "seconds": 6.0}, {"step": 20, "seconds": 12.0}, None] == times["per_seed"]
    assert (2, 3, 15, 9.0) == (times["reached"], times["of"], times["median_step"], times["median_seconds"])
    assert 0.6 == pytest.approx(times["median_seconds_share"])
    assert None is summary["random"]["scores"]["avg"]["difference"]
    assert (2 / 3, 2) == (
        pytest.approx(bisect["scores"]["avg"]["difference"]["mean"]),
        bisect["scores"]["avg"]["difference"]["wins"],
    )


def test_a_summary_pairs_by_seed_and_not_by_place():
    """The runs of an arm may be given in another order than those of the reference."""
    curve = [(10, 1.0, 1.0)]
    records = {
        "random": {1: record(10.0, 1.0, curve), 2: record(20.0, 1.0, curve)},
        "gcbs": {2: record(21.0, 1.0, curve), 1: record(11.0, 1.0, curve)},
    }
    assert [1.0, 1.0] == summarise(records, "random", "avg")["gcbs"]["scores"]["avg"]["difference"]["interval"]


def test_a_summary_refuses_what_cannot_be_paired():
    """A missing reference and a missing seed are named."""
    runs = {1: record(1.0, 1.0, [])}
    with pytest.raises(ValueError, match="reference: got 'none', expected one of the arms random"):
        summarise({"random": runs}, "none", "avg")
    with pytest.raises(ValueError, match=r"arm gcbs: got the seeds \[2\], expected some of those of random, \[1\]"):
        summarise({"random": runs, "gcbs": {2: runs[1]}}, "random", "avg")


def test_a_result_is_what_its_file_says():
    """Flat, with the scores under their names; what only comparisons have is left out elsewhere."""
    result = record(1.5, 2.0, [[10, 1.0, 1.5]])
    flat = result.to_json()
    assert (1.5, 1.5, 30, 2.0) == (flat["avg"], flat["STSBenchmark-dev"], flat["steps"], flat["seconds_total"])
    assert {"scores", "tasks", "best_step"} & flat.keys() == set()
    assert result == RunResult.from_json({**flat, "of a later version": "text"})
    alone = dataclasses.replace(result, dev_steps=None).to_json()
    assert {"dev_steps", "dev_curve", "plan_log", "seconds_total", "seconds_mining"} & alone.keys() == set()
    del flat["corpus_hash"], flat["steps"]
    with pytest.raises(ValueError, match="a run's results lack steps, corpus_hash"):
        RunResult.from_json(flat)


def test_scores_of_tasks_with_any_name_are_kept():
    """A folder of STS tasks may hold files of any name: a result read again holds all of its scores."""
    result = dataclasses.replace(record(1.5, 2.0, []), scores={"STS12": 1.0, "My.v2": 2.0, "avg": 1.5})
    assert result == RunResult.from_json(result.to_json())
