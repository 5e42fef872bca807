"""Plans in cells: every row once, full batches, near what the whole plan closes, within a budget of memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcbs_st.planners import BestPlanner, BisectPlanner, GCBSPlanner, RandomWalkPlanner, check_order
from gcbs_st.planners import cells as cells_module
from gcbs_st.planners.algorithms import spill
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.algorithms.trees import cut_cells, find_cells
from gcbs_st.planners.cells import plan_by_cells, plan_in_cells
from gcbs_st.planners.quality import plan_quality


def make_rows(n, d=16, *, topics=40, seed=0, dtype=np.float32):
    """Anchors and positives of so many topics, unit rows."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(topics, d))
    chosen = centres[rng.integers(topics, size=n)]
    sides = [chosen + 0.6 * rng.normal(size=(n, d)) for _ in range(2)]
    return tuple((side / np.linalg.norm(side, axis=1, keepdims=True)).astype(dtype) for side in sides)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks and buffers so small that rows come in many pieces."""
    monkeypatch.setattr(cells_module, "_CHUNK_ROWS", 97)
    monkeypatch.setattr(spill, "BUFFERED", 4096)


def slow_cells(points, tree):
    """Each point down the tree, one by one."""
    found = []
    for point in points:
        node = 0
        while node >= 0:
            left = float(point @ tree.directions[node]) > tree.thresholds[node]
            node = int(tree.children[node, 0 if left else 1])
        found.append(~node)
    return np.array(found)


@pytest.mark.parametrize("sizes", [[50], [30, 30], [20, 40, 10], [7, 8, 9, 10, 11]])
def test_points_find_the_cells_that_were_cut(sizes):
    """The points of the tree are sent to the cells that they were cut into; others where the slow walk sends them."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(sum(sizes), 5)).astype(np.float32)
    order, tree = cut_cells(points.copy(), sizes, rng)
    found = find_cells(points, tree)
    np.testing.assert_array_equal(np.repeat(np.arange(len(sizes)), sizes), found[order])
    others = rng.normal(size=(300, 5)).astype(np.float32)
    np.testing.assert_array_equal(
        slow_cells(others, tree) if len(sizes) > 1 else np.zeros(300), find_cells(others, tree)
    )


@pytest.mark.parametrize("planner", [BisectPlanner(trees=1), BestPlanner(neighbors=8), GCBSPlanner(neighbors=8)])
def test_cells_close_nearly_what_the_whole_closes(planner, small_chunks):
    """Every row once; with five cells at least 0.9 of what one plan of all rows closes, and far more than chance."""
    anchors, positives = make_rows(4000)
    whole = planner.plan(anchors, positives, 16, np.random.default_rng(0))
    order = plan_by_cells(planner, anchors, positives, 16, np.random.default_rng(0), most_rows=960)
    check_order(order, 4000, "cells")
    closed = [plan_quality(anchors, positives, one, 16, sample_rows=None).closed for one in (whole, order)]
    assert closed[1] > max(0.9 * closed[0], 0.1), closed


@given(n=st.integers(1, 400), batch_size=st.integers(1, 24), most=st.integers(48, 200), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_any_number_of_rows_makes_full_batches(n, batch_size, most, seed):
    """A bijection for any sizes, the same from the same seed."""
    anchors, positives = make_rows(n, 4, seed=seed)
    planner = BisectPlanner(trees=1, threads=1)
    orders = [
        plan_by_cells(planner, anchors, positives, batch_size, np.random.default_rng(seed), most_rows=most)
        for _ in range(2)
    ]
    check_order(orders[0], n, "cells")
    np.testing.assert_array_equal(*orders)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_maps_and_arrays_give_the_same_order(tmp_path, small_chunks, dtype):
    """Whatever holds the rows, and with any number of threads."""
    anchors, positives = make_rows(1500, 160, dtype=dtype)
    for name, side in (("a", anchors), ("p", positives)):
        np.save(tmp_path / f"{name}.npy", side)
    maps = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "ap"]
    orders = [
        plan_by_cells(
            BisectPlanner(threads=threads), *sides, 16, np.random.default_rng(3), most_rows=500, folder=tmp_path
        )
        for sides, threads in (((anchors, positives), 1), (maps, 2))
    ]
    np.testing.assert_array_equal(*orders)
    assert ["a.npy", "p.npy"] == sorted(file.name for file in tmp_path.iterdir()), "the copy is gone"


def test_alike_rows_do_not_make_a_cell_too_large(monkeypatch):
    """Two thirds of the rows are one text, which no bisector parts: no planner gets more rows than were allowed."""
    anchors, positives = make_rows(1200)
    anchors[:800], positives[:800] = anchors[0], positives[0]
    seen = []
    plan = BisectPlanner.order_rows

    def watched(self, left, right, batch_size, rng):
        seen.append(len(left))
        return plan(self, left, right, batch_size, rng)

    monkeypatch.setattr(BisectPlanner, "order_rows", watched)
    order = plan_by_cells(BisectPlanner(), anchors, positives, 16, np.random.default_rng(0), most_rows=320)
    check_order(order, 1200, "cells")
    assert max(seen) <= 320
    assert 1200 + seen[-1] == sum(seen), "what is left of each is planned once more"


def test_a_planner_is_told_what_contradicts_within_its_cell(small_chunks):
    """Rows of one group that stand anywhere among all rows: few meet, where without being told many do."""
    anchors, positives = make_rows(1600, topics=400)
    largest = np.argmax(np.abs(anchors), axis=1)
    groups = largest + 16 * (anchors[np.arange(1600), largest] > 0)
    starts = np.arange(1601, dtype=np.int64)
    against = Contradictions(None, None, starts, groups.astype(np.int64), np.ones(1600, bool))
    assert against

    def meetings(planner):
        order = plan_by_cells(planner, anchors, positives, 16, np.random.default_rng(0), most_rows=480)
        batches = groups[check_order(order, 1600, "cells")].reshape(-1, 16)
        return sum(16 - len(set(batch)) for batch in batches.tolist())

    assert meetings(BestPlanner(neighbors=8, contradictions=against)) < 0.9 * meetings(BestPlanner(neighbors=8))


def test_a_planner_that_repeats_rows_makes_whole_batches(small_chunks):
    """Walks that need not cover the rows: distinct rows within each batch."""
    anchors, positives = make_rows(1200)
    planner = RandomWalkPlanner(candidates=50, neighbors=8, exact_cover=False)
    order = plan_by_cells(planner, anchors, positives, 16, np.random.default_rng(0), most_rows=400)
    batches = order.reshape(-1, 16)
    assert all(16 == len(set(batch)) for batch in batches.tolist())
    assert len(batches) > 60


def test_a_budget_that_holds_everything_changes_nothing():
    """The planner's own order."""
    anchors, positives = make_rows(500)
    orders = [
        BisectPlanner().plan(anchors, positives, 16, np.random.default_rng(0)),
        plan_in_cells(BisectPlanner(), anchors, positives, 16, np.random.default_rng(0), memory_budget=10**12),
    ]
    np.testing.assert_array_equal(*orders)


def test_bad_input_is_refused(monkeypatch, tmp_path):
    """A budget below what the process holds, rows that are no embeddings, a disk without room: each says what to do."""
    anchors, positives = make_rows(500)
    rng = np.random.default_rng(0)
    with pytest.raises(
        ValueError, match=r"memory_budget: got 0\.00 GB, expected at least \d\.\d+ GB for 500 rows of 16"
    ):
        plan_in_cells(BisectPlanner(), anchors, positives, 16, rng, memory_budget=10**6)
    with pytest.raises(ValueError, match=r"anchors have shape \(500, 16\) but positives \(400, 16\)"):
        plan_in_cells(BisectPlanner(), anchors, positives[:400], 16, rng, memory_budget=10**12)
    broken = anchors.copy()
    broken[123] = np.nan
    monkeypatch.setattr(cells_module, "_CHUNK_ROWS", 100)
    monkeypatch.setattr(cells_module, "_SAMPLE_ROWS", 10)
    monkeypatch.setattr(cells_module, "_SAMPLE_PER_CELL", 1)
    with pytest.raises(
        ValueError, match=r"rows 100 to 199: 1 of 100 embeddings hold NaN or infinity \(first: row 23\)"
    ):
        plan_by_cells(BisectPlanner(), broken, positives, 16, rng, most_rows=100)
    monkeypatch.setattr("shutil.disk_usage", lambda where: type("Usage", (), {"free": 5}))
    with pytest.raises(ValueError, match=rf"folder: {tmp_path} has 0\.0 GB left, expected at least"):
        plan_by_cells(BisectPlanner(), anchors, positives, 16, rng, most_rows=100, folder=tmp_path)


_PLANNED = """
import json, sys
from pathlib import Path
import numpy as np
folder = Path(sys.argv[1])
n, d = 600_000, 128
rng = np.random.default_rng(0)
for name in "ap":
    rows = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, (n, d))
    for start in range(0, n, 50_000):
        part = rng.normal(size=(50_000, d)).astype(np.float32)
        rows[start : start + 50_000] = part / np.linalg.norm(part, axis=1, keepdims=True)
    rows.flush()
"""


def test_a_budget_is_kept(tmp_path):
    """The command plans 600,000 rows, 307 MB of embeddings, within 650 MB, of which Python has a third for itself."""
    subprocess.run([sys.executable, "-c", _PLANNED, str(tmp_path)], check=True)
    peaks = []
    for budget in ([], ["--memory-budget", "650MB"]):
        command = ["--anchors", tmp_path / "a.npy", "--positives", tmp_path / "p.npy", "--batch-size", "64", "--out"]
        command += [tmp_path / "order.npy", "--planner", "bisect", "--option", "trees=1", *budget]
        ran = subprocess.run(
            [sys.executable, "-m", "gcbs_st.cli", "plan", *map(str, command)],
            check=True,
            capture_output=True,
            text=True,
        )
        peaks.append(json.loads(ran.stdout)["peak_bytes"])
        check_order(np.load(tmp_path / "order.npy"), 600_000, "bisect")
    assert peaks[1] <= 650e6 < peaks[0], peaks
