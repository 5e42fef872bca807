"""Bisection by torch: what it finds, beside what numba finds, and when it is the one that plans. Here on a CPU."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pairs, make_static_model, planted_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import in_batch_quality
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from test_best import topical_pairs

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.planners import BestPlanner, BisectPlanner, RandomPlanner, bisect
from gcbs_st.planners.algorithms import torch_trees, trees
from gcbs_st.planners.base import configured
from gcbs_st.planners.cells import plan_by_cells
from gcbs_st.planners.quality import plan_quality
from gcbs_st.training import planned_training
from gcbs_st.training.planned_training import accelerator_of

pytestmark = pytest.mark.usefixtures("one_thread")


def grow(points: np.ndarray, size: int, seed: int = 0, count: int = 1) -> np.ndarray:
    """The order that torch finds; the points are left as they are."""
    return torch_trees.grow_trees(torch.tensor(points), size, np.random.default_rng(seed), trees=count)


def integers(m: int, dims: int = 8, seed: int = 0) -> np.ndarray:
    """(m, dims) float32 whose products and means, by a power of two, are exact, whatever the order of the sums."""
    return np.random.default_rng(seed).integers(-3, 4, size=(m, dims)).astype(np.float32)


@pytest.fixture
def by_torch(monkeypatch) -> list[str | None]:
    """Lets torch plan on the CPU for whoever names a device; the devices that were named."""
    named: list[str | None] = []

    def on_cpu(device: str | None) -> str | None:
        named.append(device)
        return None if device is None or device == "cpu" else "cpu"

    monkeypatch.setattr(bisect, "torch_device", on_cpu)
    return named


# ------------------------------------------------------------------ what comes out


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 3), st.booleans())
def test_every_row_comes_once(size, leaves, seed, alike):
    """Any size of leaf and number of leaves, odd ones and a single one, also where all rows are equal."""
    points = np.ones((size * leaves, 5), np.float32) if alike else integers(size * leaves, 5, seed)
    order = grow(points, size, seed, count=2)
    assert np.int64 == order.dtype
    assert list(range(size * leaves)) == sorted(order.tolist())


def test_a_single_leaf_stays_as_it_is():
    """Nothing is left to be split."""
    assert list(range(8)) == grow(integers(8), 8).tolist()


def test_two_leaves_are_the_two_groups():
    """With twice the leaf's rows there is one cut, between the groups."""
    far = np.random.default_rng(1).permutation(np.repeat([50, -50], 8)).astype(np.float32)
    order = grow(integers(16) + far[:, None], 8)
    assert [1, 1] == [len(set(far[half].tolist())) for half in (order[:8], order[8:])]


def test_equal_rows_keep_their_order():
    """Of equal products the first place goes first, so that the order is one even where nothing tells rows apart."""
    assert list(range(96)) == grow(np.ones((96, 4), np.float32), 8, count=3).tolist()


def test_the_order_is_a_matter_of_the_seed():
    """The same twice, another one from another seed; as many numbers are drawn as by numba, and points are not moved."""
    points = topical_pairs(600)[0]
    before = torch.tensor(points)
    generators = [np.random.default_rng(3) for _ in range(3)]
    first, second = (torch_trees.grow_trees(before, 10, rng, trees=2) for rng in generators[:2])
    assert first.tolist() == second.tolist()
    assert first.tolist() != grow(points, 10, seed=4, count=2).tolist()
    assert np.array_equal(points, before.numpy())
    trees.grow_trees(points.copy(), 10, generators[2], trees=2)
    assert generators[0].integers(2**31) == generators[2].integers(2**31)


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 1000])
def test_the_order_does_not_depend_on_the_chunks(chunk_rows, monkeypatch):
    """Not for nodes that are smaller than a chunk, nor for those that are larger, nor with sampled means."""
    monkeypatch.setattr(torch_trees, "SAMPLE_ROWS", 64)
    points = integers(1024)
    expected = grow(points, 8, count=2)
    monkeypatch.setattr(torch_trees, "_CHUNK_ROWS", chunk_rows)
    assert expected.tolist() == grow(points, 8, count=2).tolist()


@pytest.mark.parametrize("leaves", [2, 3, 5, 8, 11, 16, 21])
def test_neighbouring_leaves_come_from_one_parent(leaves):
    """On a line each half of a tree, and each half of these, is an interval; the first has the smaller half of leaves."""
    points = np.random.default_rng(leaves).permutation(4 * leaves).astype(np.float32)[:, None]

    def assert_cut(values: np.ndarray) -> None:
        if len(values) > 4:
            first, second = np.split(values, [len(values) // 4 // 2 * 4])
            assert first.min() > second.max() or first.max() < second.min()
            assert_cut(first)
            assert_cut(second)

    for seed in range(4):
        assert_cut(points[grow(points, 4, seed), 0])


def test_a_sample_is_one_row_of_each_stretch():
    """Distinct, ascending and spread evenly; all rows where these are few; not the same each time."""
    assert list(range(2048)) == torch_trees._draw_places(2048, np.random.default_rng(0)).tolist()
    draws = [torch_trees._draw_places(5000, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    bounds = np.linspace(0, 5000, 2049)
    assert (np.diff(draws[0]) > 0).all()
    assert (np.floor(bounds[:-1]) <= draws[0]).all() and (draws[0] <= bounds[1:]).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_tightest_tree_is_taken(seed):
    """Of six trees, each grown alone, by the measure that `trees` goes by."""
    points, generator = topical_pairs(600)[0], np.random.default_rng(seed)
    alone = [torch_trees.grow_trees(torch.tensor(points), 10, generator) for _ in range(6)]
    found = grow(points, 10, seed, count=6)
    tightness = [trees._measure_leaves(points[order], 10) for order in alone]
    assert alone[int(np.argmax(tightness))].tolist() == found.tolist()
    measured = torch_trees._measure_leaves(torch.tensor(points), torch.arange(600).reshape(60, 10))
    assert trees._measure_leaves(points, 10) == pytest.approx(measured, rel=1e-5)


# ------------------------------------------------------------------ beside numba


@pytest.mark.parametrize("clusters, rows, size", [(8, 160, 16), (7, 150, 10), (12, 512, 64)])
def test_planted_clusters_are_found(clusters, rows, size):
    """Leaves are as tight as numba's within 1 %, and of one cluster as often, with sampled means as well.

    The rows of the clusters come in turn: means on every third row would know of a third of the clusters.
    """
    pairs = planted_pairs(clusters, rows)
    points = pairs[0] + pairs[1]
    purity, tightness = [], []
    for find in (
        lambda seed: grow(points, size, seed, count=4),
        lambda seed: trees.grow_trees(points.copy(), size, np.random.default_rng(seed), trees=4),
    ):
        orders = [find(seed) for seed in range(4)]
        of_leaves = [(order % clusters).reshape(-1, size) for order in orders]
        purity.append(np.mean([(leaf == leaf[:, :1]).all(axis=1).mean() for leaf in of_leaves]))
        tightness.append(np.mean([trees._measure_leaves(points[order], size) for order in orders]))
    assert purity[0] >= purity[1] - 0.05
    assert tightness[0] >= 0.99 * tightness[1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("d", [16, 200])
@pytest.mark.parametrize("some", [False, True])
def test_pairs_are_projected_as_by_numpy(dtype, d, some):
    """On the same axes up to their signs, from any precision, whole or in part; a few dimensions stay as they are."""
    rng = np.random.default_rng(0)
    anchors, positives = (rng.normal(size=(400, d)).astype(dtype) * np.linspace(3, 0.1, d, dtype=dtype) for _ in "ap")
    rows = np.setdiff1d(np.arange(400), [3, 200]) if some else np.arange(400)
    expected = trees.project_pairs(anchors, positives, rows, np.random.default_rng(1))
    found = torch_trees.project_pairs(anchors, positives, rows, np.random.default_rng(1), "cpu")
    assert (torch.float32, (len(rows), min(d, 128))) == (found.dtype, tuple(found.shape))
    np.testing.assert_allclose(np.abs(expected), np.abs(found.numpy()), atol=0.02 if dtype is np.float16 else 2e-3)
    products = [points[:50] @ points[:50].T for points in (expected, found.numpy())]
    np.testing.assert_allclose(*products, rtol=1e-2, atol=0.05)


def test_one_array_for_both_sides_is_a_pair_all_the_same():
    """Where a text is its own positive the points are twice the embeddings, and the embeddings stay."""
    anchors = topical_pairs(100)[0]
    found = torch_trees.project_pairs(anchors, anchors, np.arange(100), np.random.default_rng(0), "cpu")
    np.testing.assert_array_equal(2 * anchors, found.numpy())
    np.testing.assert_array_equal(topical_pairs(100)[0], anchors)


@pytest.mark.parametrize("batch_size", [64, 16])
def test_captions_are_planned_as_well(data_folder, batch_size):
    """8,000 captions: what is closed of the gap is within 0.01 of numba's, or more, on average over seeds.

    The loss is taken over all rows and not over some batches, whose choice would make ten times the difference.
    """
    folder = data_folder / "embeddings"
    anchors, positives = (
        np.load(folder / f"multi30k_minilm_{side}.npy")[:8000].astype(np.float32) for side in ("anchors", "positives")
    )
    random = np.random.default_rng(9).permutation(8000)
    limits = plan_quality(anchors, positives, random, batch_size, sample_rows=2048)
    closable = limits.gap_random - limits.gap_limit
    closed = []
    for seed in range(4):
        points = trees.project_pairs(anchors, positives, np.arange(8000), np.random.default_rng(seed))
        by_torch = grow(points, batch_size, seed, count=4)
        by_numba = trees.grow_trees(points, batch_size, np.random.default_rng(seed), trees=4)
        losses = [
            in_batch_losses(anchors, positives, order, batch_size).mean() for order in (by_torch, by_numba, random)
        ]
        closed.append([(loss - losses[2]) / closable for loss in losses[:2]])
    found = np.mean(closed, axis=0)
    assert found[1] > 0.3
    assert found[0] >= found[1] - 0.01


def in_batch_losses(anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, batch_size: int) -> np.ndarray:
    """(n,) losses of all anchors within their batches, at the scale 20; what `in_batch_quality` says, but fast."""
    batches = order.reshape(-1, batch_size)
    scores = 20 * anchors[batches] @ positives[batches].transpose(0, 2, 1)
    return (np.log(np.exp(scores).sum(axis=2)) - np.einsum("bii->bi", scores)).ravel()


def test_the_fast_losses_are_the_oracles():
    """The measure of the test before this one."""
    anchors, positives = topical_pairs(64)
    order = np.random.default_rng(0).permutation(64)
    expected = in_batch_quality(anchors, positives, order, 8, 20.0)["train"]
    assert expected == pytest.approx(in_batch_losses(anchors, positives, order, 8).mean(), rel=1e-5)


# ------------------------------------------------------------------ who plans


@pytest.mark.parametrize("n", [0, 5, 16, 17, 32, 131, 400])
@pytest.mark.parametrize("options", [{}, {"clusters_per_batch": 4}, {"clusters_per_batch": 16}])
def test_the_planner_plans_by_torch(n, options, by_torch):
    """Each row once, whatever n is next to the batch size; rows that fill no batch are those that numba leaves over."""
    anchors, positives = topical_pairs(max(n, 60))
    plans = [
        BisectPlanner(device=device, **options).plan(anchors[:n], positives[:n], 16, np.random.default_rng(2))
        for device in ("cuda", None)
    ]
    assert list(range(n)) == sorted(plans[0].tolist())
    assert plans[0][n // 16 * 16 :].tolist() == plans[1][n // 16 * 16 :].tolist()


def test_cells_are_planned_by_torch(by_torch):
    """Planning in cells hands the device on."""
    anchors, positives = topical_pairs(1000)
    order = plan_by_cells(
        BisectPlanner(device="cuda"), anchors, positives, 16, np.random.default_rng(0), most_rows=320
    )
    assert list(range(1000)) == sorted(order.tolist())
    assert {"cuda"} == set(by_torch)
    losses = [
        in_batch_losses(anchors, positives, rows[:992], 16).mean()
        for rows in (order, np.random.default_rng(0).permutation(1000))
    ]
    assert losses[0] > losses[1] + 0.3


def test_a_cpu_is_numbas():
    """Whoever names no device, or the CPU, gets the same plan, and torch has no part in it."""
    anchors, positives = topical_pairs(300)
    plans = {
        device: BisectPlanner(device=device).plan(anchors, positives, 10, np.random.default_rng(0)).tolist()
        for device in (None, "cpu", "cpu:0")
    }
    assert plans[None] == plans["cpu"] == plans["cpu:0"]
    assert [None, None, None, "cuda", "mps"] == [
        bisect.torch_device(name) for name in (None, "cpu", "cpu:0", "cuda", "mps")
    ]


def test_a_device_without_memory_leaves_the_plan_to_the_cpu(by_torch, monkeypatch, caplog):
    """The plan is the CPU's, from the same random numbers, and a warning says so; other errors are not swallowed."""
    anchors, positives = topical_pairs(300)
    expected = BisectPlanner().plan(anchors, positives, 16, np.random.default_rng(0))

    def fail(error: Exception) -> Any:
        def grow_trees(points, size, rng, *, trees):
            rng.integers(9)
            raise error

        return grow_trees

    monkeypatch.setattr(torch_trees, "grow_trees", fail(torch.OutOfMemoryError("CUDA out of memory.")))
    with caplog.at_level(logging.WARNING):
        order = BisectPlanner(device="cuda:3").plan(anchors, positives, 16, np.random.default_rng(0))
    assert expected.tolist() == order.tolist()
    assert "cuda:3 has no memory left for 288 rows" in caplog.text
    monkeypatch.setattr(torch_trees, "grow_trees", fail(RuntimeError("an illegal memory access")))
    with pytest.raises(RuntimeError, match="illegal"):
        BisectPlanner(device="cuda").plan(anchors, positives, 16, np.random.default_rng(0))


def test_a_device_is_a_name():
    """Anything else is refused with what was expected."""
    with pytest.raises(ValueError, match="device: got 0, expected a name"):
        BisectPlanner(device=0)


def test_a_planner_that_names_a_device_keeps_it():
    """The trainer's device is for planners that name none and know of devices; None changes nothing."""
    assert "cuda:1" == configured(BisectPlanner(), device="cuda:1").device
    assert "cpu" == configured(BisectPlanner(device="cpu"), device="cuda:1").device
    for planner in (BisectPlanner(), RandomPlanner(), BestPlanner(scale=20.0)):
        assert planner is configured(planner, device=None)
    assert not hasattr(configured(RandomPlanner(), device="cuda:1"), "device")


def test_accelerators_are_told():
    """Those that compute what they are given at once, and that planners were meant for."""
    names = ["cpu", "cuda:1", "xpu:0", "mps", "meta", "xla"]
    expected = [None, "cuda:1", "xpu:0", None, None, None]
    assert expected == [accelerator_of(torch.device(name)) for name in names]


@pytest.mark.parametrize("planner, options", [("auto", None), ("bisect", None), ("bisect", {"device": "cpu"})])
def test_a_run_on_an_accelerator_plans_on_it(planner, options, tmp_path, by_torch, monkeypatch):
    """The trainer's device, taken for an accelerator, is the planner's, unless the user named one."""
    told, grown = [], []
    monkeypatch.setattr(planned_training, "accelerator_of", lambda device: told.append(str(device)) or "cuda:7")
    original = torch_trees.grow_trees

    def noting(points, size, rng, *, trees):
        grown.append((tuple(points.shape), size))
        return original(points, size, rng, trees=trees)

    monkeypatch.setattr(torch_trees, "grow_trees", noting)
    model = make_static_model()
    args = GCBSTrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, num_train_epochs=2, planner=planner, planner_options=options,
        embedding_source="encode", report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no",
    )  # fmt: skip
    trainer = GCBSTrainer(model, args, make_pairs(), loss=MultipleNegativesRankingLoss(model))
    trainer.train()
    assert {"cpu"} == set(told)
    assert {"cuda:7" if options is None else "cpu"} == set(by_torch)
    assert [((200, 16), 8)] * (2 if options is None else 0) == grown
    assert trainer.planner.device is (None if options is None else "cpu"), "the user's planner was changed"


def test_a_run_on_a_cpu_plans_by_numba(tmp_path, monkeypatch):
    """Without an accelerator torch grows no tree."""
    monkeypatch.setattr(torch_trees, "grow_trees", lambda *args, **kwargs: pytest.fail("torch planned"))
    model = make_static_model()
    args = GCBSTrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, max_steps=4, planner="bisect", report_to="none",
        disable_tqdm=True, use_cpu=True, save_strategy="no",
    )  # fmt: skip
    trainer = GCBSTrainer(model, args, make_pairs(), loss=MultipleNegativesRankingLoss(model))
    trainer.train()
    assert any("gcbs/closed" in entry for entry in trainer.state.log_history)
