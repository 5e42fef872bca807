"""The paper's planner against the dense computation, and what bounds its cost."""

from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import reference_gcbs

from gcbs_st.planners import GCBSPlanner, gcbs

QUANTILES = st.one_of(st.floats(0.01, 0.999), st.sampled_from([1e-9, 0.001, 0.25, 0.5, 0.999, 0.9999, 1 - 1e-9]))


def unit(rows: np.ndarray) -> np.ndarray:
    """The rows as float32 of unit length."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_pairs(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Anchors in random directions, positives near them."""
    rng = np.random.default_rng(seed)
    anchors = rng.normal(size=(n, d))
    return unit(anchors), unit(anchors + 0.5 * rng.normal(size=(n, d)))


def clustered_pairs(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Anchors around a few centres in random order, positives near them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 20), d))
    anchors = centres[rng.integers(len(centres), size=n)] + 0.3 * rng.normal(size=(n, d))
    return unit(anchors), unit(anchors + 0.2 * rng.normal(size=(n, d)))


def tied_pairs(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of halves and zeros, many of them equal, whose products are exact: ties are ties in any arithmetic."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n, max(d, 4)), dtype=np.float32)
    for row in rows:
        row[rng.choice(max(d, 4), 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return rows, rows[rng.permutation(n)] if rng.random() < 0.5 else rows


KINDS = {"random": random_pairs, "clustered": clustered_pairs, "tied": tied_pairs}


def plan(anchors: np.ndarray, positives: np.ndarray, **options: Any) -> list[int]:
    """The order of a new planner."""
    return GCBSPlanner(**options).plan(anchors, positives, 8, np.random.default_rng(0)).tolist()


def entries(anchors: np.ndarray, positives: np.ndarray, **options: Any) -> int:
    """How many products the planner keeps."""
    return GCBSPlanner(**options)._thresholded(anchors, positives).nnz


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(sorted(KINDS)), n=st.integers(3, 600), d=st.integers(2, 24),
    quantile=QUANTILES, seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_equals_dense_computation(kind: str, n: int, d: int, quantile: float, seed: int) -> None:
    """Up to 4,096 rows the order is that of the paper's plain dense computation."""
    anchors, positives = KINDS[kind](n, d, seed)
    expected = reference_gcbs(anchors, positives, quantile)
    assert expected.tolist() == plan(anchors, positives, quantile=quantile)


@pytest.mark.parametrize(("rows", "quantile"), [(1000, 0.999), (1000, 0.99), (4096, 0.999)])
def test_equals_dense_computation_on_real_rows(data_folder: Path, rows: int, quantile: float) -> None:
    """Also on the embeddings of real captions."""
    anchors, positives = (
        np.load(data_folder / "embeddings" / f"multi30k_minilm_{part}.npy", mmap_mode="r")[:rows].astype(np.float32)
        for part in ("anchors", "positives")
    )
    expected = reference_gcbs(anchors, positives, quantile)
    assert expected.tolist() == plan(anchors, positives, quantile=quantile)


@settings(deadline=None, max_examples=120)
@given(
    kind=st.sampled_from(sorted(KINDS)), n=st.integers(9, 150), d=st.integers(2, 12),
    quantile=QUANTILES, seed=st.integers(0, 2**32 - 1), chunk_rows=st.integers(1, 160),
)  # fmt: skip
def test_exact_above_sampling_size_equals_dense_computation(
    kind: str, n: int, d: int, quantile: float, seed: int, chunk_rows: int
) -> None:
    """exact=True takes the quantile over all products, from however few rows its first guess comes."""
    # The products of a part of the rows may round differently, unless they are exact.
    anchors, positives = KINDS["tied" if chunk_rows < n else kind](n, d, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcbs, "EXACT_ROWS", 8)
        patch.setattr(gcbs, "_SAMPLE_ROWS", 4)
        patch.setattr(gcbs, "_CHUNK_ROWS", chunk_rows)
        planner = GCBSPlanner(quantile=quantile, exact=True)
        order = planner.plan(anchors, positives, 8, np.random.default_rng(0))
    assert reference_gcbs(anchors, positives, quantile, exact=True).tolist() == order.tolist()


def test_exact_differs_from_sampled_quantile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the size the quantile is that of the sampled anchors, unless exact=True."""
    anchors, positives = clustered_pairs(200, 8, 0)
    monkeypatch.setattr(gcbs, "EXACT_ROWS", 8)
    monkeypatch.setattr(gcbs, "_SAMPLE_ROWS", 4)
    exact = entries(anchors, positives, quantile=0.9, exact=True)
    assert 4000 == exact
    sampled = np.random.default_rng(0).choice(200, 4, replace=False)
    threshold = np.quantile(anchors[sampled] @ positives.T, 0.9)
    expected = int((anchors @ positives.T > threshold).sum())
    assert expected != exact
    assert expected == entries(anchors, positives, quantile=0.9)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), chunk_rows=st.integers(1, 300), exact=st.booleans())
def test_chunks_do_not_matter(seed: int, chunk_rows: int, exact: bool) -> None:
    """The order is the same whatever number of anchors is multiplied at a time, also above the sampling size."""
    anchors, positives = tied_pairs(250, 8, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcbs, "EXACT_ROWS", 100)
        patch.setattr(gcbs, "_SAMPLE_ROWS", 50)
        orders = []
        for rows in (250, chunk_rows):
            patch.setattr(gcbs, "_CHUNK_ROWS", rows)
            orders.append(plan(anchors, positives, quantile=0.97, exact=exact))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_batch_size_and_rng_do_not_matter(batch_size: int) -> None:
    """The order follows from the rows alone."""
    anchors, positives = random_pairs(100, 8, 0)
    expected = GCBSPlanner(quantile=0.95).plan(anchors, positives, 8, np.random.default_rng(0))
    found = GCBSPlanner(quantile=0.95).plan(anchors, positives, batch_size, np.random.default_rng(1))
    assert expected.tolist() == found.tolist()


@pytest.mark.parametrize("neighbors", [1, 5, 20])
def test_neighbors_bounds_entries(neighbors: int) -> None:
    """With neighbors, n * neighbors products are kept, however many rows there are."""
    for n in (100, 400):
        anchors, positives = random_pairs(n, 12, 3)
        assert n * neighbors == pytest.approx(entries(anchors, positives, neighbors=neighbors), abs=2)


@pytest.mark.parametrize("neighbors", [60, 100, 5000])
def test_more_neighbors_than_rows_keep_half(neighbors: int) -> None:
    """At most half of the products are kept, so that a small set is not planned from a full matrix."""
    anchors, positives = random_pairs(100, 12, 3)
    assert 5000 == pytest.approx(entries(anchors, positives, neighbors=neighbors), abs=2)


def test_neighbors_wins_over_quantile() -> None:
    """With neighbors given the quantile has no say."""
    anchors, positives = random_pairs(200, 12, 3)
    expected = plan(anchors, positives, quantile=1 - 4 / 200)
    assert expected == plan(anchors, positives, quantile=0.5, neighbors=4)


@pytest.mark.parametrize("exact", [False, True])
def test_matrix_is_never_dense(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    """At 6,000 rows the peak is a small part of all products' memory."""
    n = 6000
    anchors, positives = clustered_pairs(n, 16, 0)
    monkeypatch.setattr(gcbs, "_CHUNK_ROWS", 256)
    planner = GCBSPlanner(quantile=0.999, exact=exact)
    tracemalloc.start()
    planner.plan(anchors, positives, 64, np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * n * 4 / 4


def test_similar_rows_share_batches() -> None:
    """Of well separated clusters, in random order, each comes in one piece."""
    rng = np.random.default_rng(0)
    cluster = rng.permutation(np.repeat(np.arange(8), 10))
    anchors = unit(np.eye(8)[cluster] + 0.05 * rng.normal(size=(80, 8)))
    order = plan(anchors, anchors, quantile=0.9)
    assert [1] * 8 == [len(set(cluster[order][start : start + 10].tolist())) for start in range(0, 80, 10)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantile": 0.0}, "quantile: got 0.0, expected a number between 0 and 1"),
        ({"quantile": 1.0}, "quantile: got 1.0, expected"),
        ({"quantile": 99.9}, "quantile: got 99.9, expected"),
        ({"quantile": float("nan")}, "quantile: got nan, expected"),
        ({"neighbors": 0}, "neighbors: got 0, expected at least 1"),
        ({"neighbors": -5}, "neighbors: got -5, expected at least 1"),
    ],
)
def test_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    """Each option outside its range raises, with what was got and expected."""
    with pytest.raises(ValueError, match=message):
        GCBSPlanner(**options)


def test_progress_bar_only_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed unless a progress bar was asked for."""
    anchors, positives = random_pairs(50, 4, 0)
    plan(anchors, positives)
    assert ("", "") == tuple(capsys.readouterr())
    plan(anchors, positives, show_progress=True)
    assert "planning" in capsys.readouterr().err


def test_many_entries_are_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where the kept products would need much memory a warning names the option that bounds them; else none."""
    anchors, positives = random_pairs(50, 4, 0)
    monkeypatch.setattr(gcbs, "_MANY_ENTRIES", 200)
    with caplog.at_level(logging.WARNING):
        plan(anchors, positives, quantile=0.95)
        assert [] == caplog.messages
        plan(anchors, positives, quantile=0.9)
    assert ["set neighbors" in message for message in caplog.messages] == [True]
