"""Tests of training on two processes that really are two: gloo on the CPU, see ``distributed_job.py``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_bert, planted_pairs
from distributed_job import BATCH, EPOCHS, ROWS, break_on_the_last_rank, work
from forked_ranks import run_ranks

from gcbs_st.planners import make_planner
from gcbs_st.planners.quality import plan_quality

RANKS, STEPS = 2, 6


def launch(folder: Path, model_folder: str, ranks: int, workers: int, source: str) -> list[dict]:
    """What each rank wrote down."""
    run_ranks(work, ranks, model_folder, folder, workers, source, folder=folder)
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(ranks)]


def test_a_rank_that_fails_ends_the_launch(tmp_path):
    """The tests' own launcher waits for no other rank then, and tells what was printed."""
    began = time.monotonic()
    with pytest.raises(AssertionError, match="broken on purpose"):
        run_ranks(break_on_the_last_rank, RANKS, folder=tmp_path)
    assert time.monotonic() - began < 150


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((0, "encode"), marks=pytest.mark.slow),
        (0, "harvest"),
        pytest.param((2, "harvest"), marks=pytest.mark.slow),
    ],
    ids=["encode", "harvest", "harvest, 2 workers"],
)
def ranks(request, tmp_path_factory, bert_folder):
    """What each rank saw of the same runs."""
    return launch(tmp_path_factory.mktemp("distributed"), bert_folder, RANKS, *request.param)


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_all_ranks_harvest_for_the_one_that_plans(processes, tmp_path):
    """Every rank's rows come under their ids, through shared files and sent alike, and give the same batches."""
    model_folder = make_bert(tmp_path / "still", dropout=0.0)
    seen = launch(tmp_path, model_folder, processes, 0, "both ways")
    for way in ("shared", "aged", "sent", "sent, on disk", "sent aged"):
        stored = seen[0][way]["stored"]
        assert stored["in_files"] is not way.startswith("sent")
        trained = {row for rank in seen for _, batch in rank[way]["trained"] for row in batch}
        assert trained <= set(stored["rows"])
        assert stored["error"] < 2e-6
    for rank in seen:
        assert rank["shared"]["trained"] == rank["sent"]["trained"] == rank["sent, on disk"]["trained"]
        assert rank["aged"]["trained"] == rank["sent aged"]["trained"]
    assert seen[0]["shared"]["ages"][1] > 2, "rows of the first epoch are as old as that"
    assert [2.0] == seen[0]["aged"]["ages"] == seen[0]["sent aged"]["ages"]


def test_where_one_rank_fails_all_do(tmp_path):
    """No rank waits for another that failed in planning, its own cell or embedding; each names the cause and goes on."""
    main, other = launch(tmp_path, "", RANKS, 0, "failing")
    no_plan, no_cell, by_zero = (
        "ValueError: no plan today",
        "ValueError: no plan of this cell",
        "ZeroDivisionError: division by zero",
    )
    assert {"planning": no_plan, "nowhere": "nothing"} == {key: main[key] for key in ("planning", "nowhere")}
    assert f"RuntimeError: planning failed on rank 0 (its traceback says where): {no_plan}" == other["planning"]
    assert f"RuntimeError: planning a cell failed on rank 1 (its traceback says where): {no_cell}" == main["a cell"]
    assert f"RuntimeError: embedding failed on rank 1 (its traceback says where): {by_zero}" == main["embedding"]
    assert [no_cell, by_zero, "nothing"] == [other[key] for key in ("a cell", "embedding", "nowhere")]


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_all_ranks_plan_a_cell_each(processes, tmp_path):
    """Each process is given its own cell of near rows, and what they plan is one order that closes as much as one's."""
    seen = launch(tmp_path, "", processes, 0, "together")
    anchors, positives = planted_pairs(processes)
    n = len(anchors)
    for rank in seen:
        assert [n // processes] == rank["given"], "no process is given more than its own rows"
        assert rank["threads"] == max(1, len(os.sched_getaffinity(0)) // processes)
    assert [[]] * (processes - 1) == [rank["best"] for rank in seen[1:]]
    for way in ("values", "judge"):
        order = seen[0]["told"][way]["order"]
        assert list(range(16 * processes)) == sorted(order)
        for number, rank in enumerate(seen):
            cell = order[16 * number : 16 * (number + 1)]
            expected = sorted([i, j] for i in cell for j in cell if i != j and i // 4 == j // 4)
            assert expected and expected == rank["told"][way]["told"], "each process is told of its own rows"
    assert sorted(seen[0]["few"]) == list(range(2 * BATCH)), "two batches for three processes"
    for name in ("reversing", "bisect", "partition", "best"):
        order = np.array(seen[0][name])
        assert sorted(order) == list(range(n))
        for cell in order.reshape(processes, -1):
            assert 1 == len(set(cell % processes)), "rows of one planted cluster are planned by one process"
    for name in ("bisect", "partition", "best"):
        alone = make_planner(name).plan(anchors, positives, BATCH, np.random.default_rng(3))
        closed = [plan_quality(anchors, positives, np.array(o), BATCH).closed for o in (seen[0][name], alone)]
        assert closed[0] > closed[1] - 0.05, closed


@pytest.mark.slow
def test_a_step_is_of_one_dataset_and_planned_as_one_batch(bert_folder, tmp_path):
    """Where negatives are gathered, the batches of a step are a block of 2 B rows of one dataset's plan."""
    first, second = launch(tmp_path, bert_folder, RANKS, 0, "several")
    for sampler in ("round_robin", "proportional"):
        steps = list(zip(first[sampler]["trained"], second[sampler]["trained"], strict=True))
        assert {"first", "second"} == {name for (_, (name, _)), _ in steps}
        blocks = {
            (plan["name"], frozenset(plan["rows"][start : start + RANKS * BATCH]))
            for plan in first[sampler]["plans"]
            for start in range(0, len(plan["rows"]), RANKS * BATCH)
        }
        for (step, (name, rows)), (other_step, (other_name, other_rows)) in steps:
            assert (step, name) == (other_step, other_name)
            assert (name, frozenset(rows + other_rows)) in blocks
            assert 2 * BATCH == len({*rows, *other_rows})
        assert {"gcbs/first/planned_rows", "gcbs/second/planned_rows"} <= set(first[sampler]["logged"])
    # Whole steps of the smaller dataset: 54 rows are 6 batches, 3 steps an epoch; of the larger, 6.
    counts = {
        s: [name for _, (name, _) in first[s]["trained"]].count("first") for s in ("round_robin", "proportional")
    }
    assert {"round_robin": 3 * EPOCHS, "proportional": 6 * EPOCHS} == counts


def epochs_of(trained):
    """The batches of each epoch."""
    return [[batch for step, batch in trained if (step - 1) // STEPS == epoch] for epoch in range(EPOCHS)]


def test_all_ranks_hold_the_same_order(ranks):
    """After every event at which plans are made, order and cursor are equal on all ranks."""
    first, second = (rank["whole"]["orders"] for rank in ranks)
    assert EPOCHS * (STEPS + 1) == len(first)
    assert first == second
    assert ranks[0]["whole"]["weights"] == ranks[1]["whole"]["weights"]


def test_each_row_at_most_once_an_epoch_over_all_ranks(ranks):
    """Every batch is full, and no row is drawn twice in an epoch by whichever rank."""
    for of_ranks in zip(*[epochs_of(rank["whole"]["trained"]) for rank in ranks], strict=True):
        batches = [batch for of_rank in of_ranks for batch in of_rank]
        assert RANKS * STEPS == len(batches)
        assert {BATCH} == set(map(len, batches))
        assert RANKS * STEPS * BATCH == len({row for batch in batches for row in batch})
    assert ROWS // BATCH > RANKS * STEPS, "no batch is left over"


def test_plans_are_made_in_mid_epoch_by_one_rank(ranks):
    """Every second step is planned for while two batches a rank are left; other ranks only take the order over."""
    ahead = len(ranks[0]["whole"]["orders"]) and ranks[0]["whole"]["orders"][1][1] // RANKS - 1
    expected = [step for step in (0, 2, 4, 6, 8, 10) if step % STEPS == 0 or step % STEPS + ahead < STEPS]
    assert expected == [plan["step"] for plan in ranks[0]["whole"]["plans"]]
    assert [] == ranks[1]["whole"]["plans"]


def test_batches_of_one_step_are_neighbours_in_the_plan(ranks):
    """What the ranks train on in one step stands side by side in the plan that was in force."""
    plans = ranks[0]["whole"]["plans"]
    pairs = [
        {tuple(plan["rows"][i : i + RANKS * BATCH]) for i in range(0, len(plan["rows"]), RANKS * BATCH)}
        for plan in plans
    ]
    for (step, first), (_, second) in zip(*[rank["whole"]["trained"] for rank in ranks], strict=True):
        made = [index for index, plan in enumerate(plans) if plan["step"] < step]
        assert any((*first, *second) in pairs[index] for index in made), step
    rows = {
        tuple(sorted(first + second))
        for (_, first), (_, second) in zip(*[r["whole"]["trained"] for r in ranks], strict=True)
    }
    assert EPOCHS * STEPS == len(rows)


def test_a_resumed_run_equals_one_that_was_not_stopped(ranks):
    """From checkpoints before, at and after plans and at the epoch's end: same batches on each rank, same weights."""
    for rank in ranks:
        whole = rank["whole"]
        assert ["3", "4", "6", "9"] == list(rank["resumed"])
        for step, resumed in rank["resumed"].items():
            assert [entry for entry in whole["trained"] if entry[0] > int(step)] == resumed["trained"], step
            assert whole["weights"] == resumed["weights"], step
