"""What is logged of a plan is an estimate: it is near the exact figures, steady, cheap, and bounded in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from conftest import planted_pairs

from gcbs_st.planners import make_planner
from gcbs_st.planners.estimate import estimate_quality
from gcbs_st.planners.quality import plan_quality

FIGURES = ("train", "gap", "gap_bound", "gap_random", "gap_limit", "closed", "tail_coverage", "false_negatives")


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of norm 1, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pairs(n: int, d: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows in clusters of different widths, so that anchors differ in how hard their negatives are."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(n // 40 + 1, d))
    rows = centers[np.arange(n) % len(centers)] + rng.uniform(0.3, 1.5, size=(n, 1)) * rng.normal(size=(n, d))
    return unit(rows), unit(rows + 0.5 * rng.normal(size=(n, d)))


@pytest.mark.parametrize("planner", ["bisect", "best", "random"])
def test_figures_at_12_000_rows_are_near_and_steady(planner):
    """`closed` has a standard deviation of at most 0.02 over what is drawn, where anchors are as unlike as here."""
    anchors, positives = pairs(12_000)
    order = make_planner(planner).plan(anchors, positives, 64, np.random.default_rng(0))[: 12_000 // 64 * 64]
    exact = plan_quality(anchors, positives, order, 64, sample_rows=None)
    estimates = [estimate_quality(anchors, positives, order, 64, scale=20.0, seed=seed) for seed in range(6)]
    found = {name: np.array([getattr(one, name) for one in estimates]) for name in FIGURES}
    assert found["closed"].std() <= 0.02
    assert exact.closed == pytest.approx(found["closed"].mean(), abs=0.02)
    for name in FIGURES:
        assert getattr(exact, name) == pytest.approx(found[name].mean(), rel=0.1, abs=0.05), name


@pytest.mark.parametrize("planner", ["bisect", "best"])
def test_figures_of_captions_are_steady(data_folder, planner):
    """12,000 captions: a standard deviation of at most 0.01, and no bias."""
    folder = data_folder / "embeddings"
    anchors, positives = (
        np.load(folder / f"multi30k_minilm_{side}.npy")[:12_000] for side in ("anchors", "positives")
    )
    order = make_planner(planner).plan(anchors, positives, 64, np.random.default_rng(0))[: 12_000 // 64 * 64]
    found = [estimate_quality(anchors, positives, order, 64, scale=20.0, seed=seed).closed for seed in range(8)]
    assert np.std(found) <= 0.01
    assert plan_quality(anchors, positives, order, 64, sample_rows=None).closed == pytest.approx(
        np.mean(found), abs=0.01
    )


@pytest.mark.parametrize("batch_size, rows", [(4, 160), (16, 160), (8, 20_000)])
def test_small_and_odd_sizes(batch_size, rows):
    """Few rows, and batches that are smaller than the tail."""
    anchors, positives = planted_pairs(4, rows // 4) if rows < 1000 else pairs(rows)
    order = np.random.default_rng(0).permutation(len(anchors) // batch_size * batch_size)
    exact = plan_quality(anchors, positives, order, batch_size, sample_rows=4096)
    found = estimate_quality(anchors, positives, order, batch_size, scale=20.0)
    assert exact.closed == pytest.approx(found.closed, abs=0.05)
    assert exact.gap == pytest.approx(found.gap, rel=0.15)


def test_a_large_batch_needs_little_memory():
    """At 8,192 rows per batch of 29,000 rows a whole batch against all rows was 5.4 GB; the bound is 300 MB."""
    anchors, positives = pairs(29_000, d=384)
    order = np.random.default_rng(0).permutation(29_000)[: 3 * 8192]
    tracemalloc.start()
    found = estimate_quality(anchors, positives, order, 8192, scale=20.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300e6
    assert abs(found.closed) < 0.05, "these batches are random"
    tracemalloc.start()
    plan_quality(anchors, positives, order, 8192, sample_rows=8192)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e9


@pytest.mark.parametrize("most", [4000, 100])
def test_some_columns_stand_for_all(monkeypatch, most):
    """Of more rows than are multiplied a part is drawn, and each counts for several; some of the hardest are among them."""
    anchors, positives = pairs(12_000)
    order = make_planner("bisect").plan(anchors, positives, 32, np.random.default_rng(0))
    exact = estimate_quality(anchors, positives, order, 32, scale=20.0)
    monkeypatch.setattr("gcbs_st.planners.estimate._MOST_COLUMNS", most)
    found = [estimate_quality(anchors, positives, order, 32, scale=20.0, seed=seed) for seed in range(4)]
    assert exact.closed == pytest.approx(np.mean([one.closed for one in found]), abs=0.05)
    assert exact.gap == pytest.approx(np.mean([one.gap for one in found]), rel=0.15)


def test_rows_that_are_no_pairs_are_no_anchors():
    """A row whose second text is a contradiction has no positive to be measured by."""
    anchors, positives = pairs(960)
    are_pairs = np.arange(960) % 2 == 0
    wrong = np.where(are_pairs[:, None], positives, -anchors)
    found = estimate_quality(anchors, wrong, np.arange(960), 32, scale=20.0, are_pairs=are_pairs)
    scores = 20 * anchors @ wrong.T
    false = [(scores[i, i // 32 * 32 : i // 32 * 32 + 32] > scores[i, i]).sum() for i in range(0, 960, 2)]
    assert np.mean(false) == pytest.approx(found.false_negatives)
    with pytest.raises(ValueError, match="at least one batch of 32 that holds a pair"):
        estimate_quality(anchors, wrong, np.arange(960), 32, scale=20.0, are_pairs=np.zeros(960, bool))
