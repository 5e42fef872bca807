"""The quality of a plan against its definition by single loops, and its bounds."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import plan_quality as by_definition

from gcbs_st.planners import GCBSPlanner, quality
from gcbs_st.planners.quality import log_sum_exp, plan_quality


def unit_pairs(n: int, d: int, seed: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) float32 unit rows, twice; the second near the first."""
    rng = np.random.default_rng(seed)
    anchors = rng.normal(size=(n, d))
    positives = anchors + noise * rng.normal(size=(n, d))
    return tuple(
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in (anchors, positives)
    )


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 40), d=st.integers(3, 12), batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1), left_out=st.integers(0, 10),
)  # fmt: skip
def test_equals_definition(n: int, d: int, batch_size: int, seed: int, left_out: int) -> None:
    """All figures are those of their definitions, also where rows are left out or the last batch is short."""
    batch_size = min(batch_size, n)
    anchors, positives = unit_pairs(n, d, seed)
    order = np.random.default_rng(seed).permutation(n)[: max(batch_size, n - left_out)]
    expected = by_definition(anchors, positives, order, batch_size, scale=1.0)
    found = plan_quality(anchors, positives, order, batch_size, scale=1.0, sample_rows=None)
    for name in ("train", "global_loss", "gap", "gap_bound", "tail_coverage", "false_negatives"):
        assert expected[name] == pytest.approx(getattr(found, name), abs=1e-6), name
    assert (len(order) // batch_size * batch_size, n) == (found.rows_used, found.rows)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 40), batch_size=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_comparison_equals_definition(n: int, batch_size: int, seed: int) -> None:
    """The random order's gap, the limit and the share closed between them are those of their definitions."""
    batch_size = min(batch_size, n)
    anchors, positives = unit_pairs(n, 6, seed)
    order = np.random.default_rng(seed).permutation(n)
    plan = by_definition(anchors, positives, order, batch_size, scale=4.0)
    plain = by_definition(anchors, positives, np.random.default_rng(1).permutation(n), batch_size, scale=4.0)
    found = plan_quality(anchors, positives, order, batch_size, scale=4.0, sample_rows=None)
    assert plain["gap"] == pytest.approx(found.gap_random, abs=5e-6)
    assert plain["gap_limit"] == pytest.approx(found.gap_limit, abs=5e-6)
    closable = plain["gap"] - plain["gap_limit"]
    expected = (plain["gap"] - plan["gap"]) / closable if closable > 1e-6 else 0.0
    assert expected == pytest.approx(found.closed, abs=1e-5 / max(closable, 1e-2))


@pytest.mark.parametrize(("batch_size", "planned"), [(16, True), (64, True), (100, False)])
def test_equals_shared_definition_on_real_rows(data_folder: Path, batch_size: int, planned: bool) -> None:
    """On real captions the figures are those of the script by which plans are scored, sample and seeds included."""
    script = data_folder.parent / "bench" / "plan_quality.py"
    if not script.is_file():
        pytest.skip(f"there is no {script.name} next to the data")
    spec = importlib.util.spec_from_file_location("shared_plan_quality", script)
    shared = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shared)
    anchors, positives = (
        np.load(data_folder / "embeddings" / f"multi30k_minilm_{part}.npy", mmap_mode="r")[:2000]
        for part in ("anchors", "positives")
    )
    rng = np.random.default_rng(5)
    order = GCBSPlanner(quantile=0.99).plan(anchors, positives, batch_size, rng) if planned else rng.permutation(2000)
    expected = shared.score(anchors, positives, order, batch_size)
    found = plan_quality(anchors, positives, order, batch_size).rounded(6)
    assert set(expected) | {"gap_bound"} == set(found)
    for name, value in expected.items():
        assert value == pytest.approx(found[name], abs=1.01e-4), name


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 80), d=st.integers(1, 10), batch_size=st.integers(1, 80), seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0.1, 100), noise=st.sampled_from([0.0, 0.1, 3.0]),
)  # fmt: skip
def test_gap_is_between_its_bounds(n: int, d: int, batch_size: int, seed: int, scale: float, noise: float) -> None:
    """0 <= gap <= gap_bound <= log(n / B) + 2 scale, up to rounding."""
    batch_size = min(batch_size, n)
    anchors, positives = unit_pairs(n, d, seed, noise)
    order = np.random.default_rng(seed).permutation(n)
    found = plan_quality(anchors, positives, order, batch_size, scale=scale, compare=False)
    rounding = 1e-6 * (1 + scale)
    assert 0 <= found.gap
    assert found.gap <= found.gap_bound + rounding
    assert found.gap_bound <= math.log(n / batch_size) + 2 * scale + rounding
    assert 0 <= found.tail_coverage <= 1
    assert 0 <= found.false_negatives <= batch_size - 1


def test_one_batch_of_all_rows_has_no_gap() -> None:
    """Where the batch is all rows nothing is left of the gap."""
    anchors, positives = unit_pairs(40, 8, 0)
    found = plan_quality(anchors, positives, np.arange(40), 40, compare=False)
    assert (0.0, 1.0) == (found.gap, found.tail_coverage)


def test_closed_of_random_order_is_near_zero() -> None:
    """A random order closes nothing of the gap on average."""
    anchors, positives = unit_pairs(600, 16, 0)
    closed = [
        plan_quality(anchors, positives, np.random.default_rng(seed).permutation(600), 10).closed
        for seed in range(20, 30)
    ]
    assert 0 == pytest.approx(np.mean(closed), abs=0.01)


def test_closed_of_clusters_is_near_one() -> None:
    """A plan whose batches are tight clusters of its size closes nearly all, and more than a random one."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(20), 8, axis=0)
    anchors = centres + 0.01 * rng.normal(size=centres.shape)
    anchors /= np.linalg.norm(anchors, axis=1, keepdims=True)
    found = plan_quality(anchors, anchors, np.arange(160), 8)
    assert 1 == pytest.approx(found.closed, abs=0.01)
    assert 0.7 == pytest.approx(found.tail_coverage, abs=1e-9)  # 7 of an anchor's 10 hardest are in its cluster
    assert found.gap < found.gap_random


@pytest.mark.parametrize(
    ("n", "d", "batch_size"), [(50, 4, 5), (203, 17, 10), (541, 147, 23), (30, 3, 1), (30, 3, 30)]
)
def test_identical_rows_close_nothing(n: int, d: int, batch_size: int) -> None:
    """Where all rows are alike every plan is as good as any other: closed is 0, not a ratio of roundings."""
    anchors = np.repeat(unit_pairs(1, d, n)[0], n, axis=0)
    found = plan_quality(anchors, anchors, np.random.default_rng(0).permutation(n), batch_size)
    assert 0 == found.closed
    assert math.log(n / batch_size) == pytest.approx(found.gap, abs=1e-5)


@pytest.mark.parametrize("chunk_rows", [1, 13, 100, 10_000])
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, chunk_rows: int) -> None:
    """The figures are the same however many anchors are multiplied at a time."""
    anchors, positives = unit_pairs(150, 8, 0)
    order = np.random.default_rng(0).permutation(150)
    expected = plan_quality(anchors, positives, order, 13).rounded(5)
    monkeypatch.setattr(quality, "_CHUNK_ROWS", chunk_rows)
    found = plan_quality(anchors, positives, order, 13).rounded(9)
    assert expected == pytest.approx(found, abs=2e-5)


def test_sample_is_whole_batches_drawn_with_the_seed() -> None:
    """About sample_rows anchors are measured, in whole batches that the seed draws; at least one batch."""
    anchors, positives = unit_pairs(200, 8, 0)
    order = np.random.default_rng(0).permutation(200)
    for sample_rows, batches in ((25, 2), (3, 1), (1000, 20)):
        drawn = np.random.default_rng(4).choice(20, batches, replace=False)
        expected = by_definition(anchors, positives, order.reshape(20, 10)[drawn].ravel(), 10, scale=20.0)
        found = plan_quality(anchors, positives, order, 10, sample_rows=sample_rows, seed=4, compare=False)
        assert expected["train"] == pytest.approx(found.train, abs=1e-5)
        assert 200 == found.rows_used


def test_without_comparison() -> None:
    """compare=False leaves out what only a comparison gives, and changes nothing else."""
    anchors, positives = unit_pairs(60, 8, 0)
    with_comparison = plan_quality(anchors, positives, np.arange(60), 7).rounded()
    without = plan_quality(anchors, positives, np.arange(60), 7, compare=False).rounded()
    nothing = dict.fromkeys(("gap_random", "gap_limit", "closed"))
    assert {**with_comparison, **nothing} == without


def test_input_is_not_modified() -> None:
    """Arrays and order are as they were, and may be read-only and of half precision."""
    anchors, positives = (rows.astype(np.float16) for rows in unit_pairs(60, 8, 0))
    order = np.arange(60)
    for array in (anchors, positives, order):
        array.setflags(write=False)
    copies = [array.copy() for array in (anchors, positives, order)]
    plan_quality(anchors, positives, order, 7)
    for copy, array in zip(copies, (anchors, positives, order), strict=True):
        assert copy.tobytes() == array.tobytes()


def test_rounded_names_the_global_loss_as_tables_do() -> None:
    """The fields as a dict, floats rounded, counts whole."""
    anchors, positives = unit_pairs(60, 8, 0)
    found = plan_quality(anchors, positives, np.arange(60), 7)
    rounded = found.rounded(2)
    assert round(found.global_loss, 2) == rounded["global"]
    assert "global_loss" not in rounded
    assert (56, 60) == (rounded["rows_used"], rounded["rows"])


@pytest.mark.parametrize(
    ("order", "batch_size", "message"),
    [
        (np.arange(5), 6, "order: got 5 rows, expected at least one batch of 6"),
        (np.array([], dtype=np.int64), 1, "order: got 0 rows, expected at least one batch of 1"),
        (np.array([1, 1, 0]), 2, r"order: holds a row twice in a batch or a row outside 0\.\.9"),
        (np.array([0, 1, 10]), 2, r"order: holds a row twice in a batch or a row outside 0\.\.9"),
        (np.array([0, -1, 3]), 2, r"order: holds a row twice in a batch or a row outside 0\.\.9"),
        (np.array([0.0, 1.0, 3.0]), 2, r"order: got float64 of shape \(3,\), expected \(rows,\) of integers"),
        (np.arange(10).reshape(5, 2), 2, r"order: got int64 of shape \(5, 2\), expected \(rows,\) of integers"),
        (np.arange(10), 0, "batch_size: got 0, expected at least 1"),
    ],
    ids=["short", "empty", "twice", "above", "below", "floats", "2-d", "batch-0"],
)
def test_bad_order_is_refused(order: np.ndarray, batch_size: int, message: str) -> None:
    """An order that is no order of these rows raises, with what was got and expected."""
    anchors, positives = unit_pairs(10, 4, 0)
    with pytest.raises(ValueError, match=message):
        plan_quality(anchors, positives, order, batch_size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:9], r"anchors have shape \(10, 4\) but positives \(9, 4\)"),
        (lambda rows: np.where(np.arange(10)[:, None] == 4, np.nan, rows), "positives: 1 of 10 .* NaN .*row 4"),
        (lambda rows: np.where(np.arange(10)[:, None] == 4, 0, rows), "positives: 1 of 10 .* all zeros .*row 4"),
    ],
    ids=["shapes", "nan", "zero"],
)
def test_bad_rows_are_refused(change: Any, message: str) -> None:
    """Rows that no planner takes are not measured either."""
    anchors, positives = unit_pairs(10, 4, 0)
    with pytest.raises(ValueError, match=message):
        plan_quality(anchors, change(positives), np.arange(10), 2)


@given(st.lists(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3), min_size=1, max_size=5))
def test_log_sum_exp(rows: list[list[float]]) -> None:
    """The log of the sum of exponentials of each row, without overflow."""
    expected = [float(np.logaddexp.reduce(row)) for row in rows]
    np.testing.assert_allclose(log_sum_exp(np.array(rows)), expected, rtol=1e-12, atol=1e-12)
