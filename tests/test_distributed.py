"""Tests of training on two processes that really are two: gloo on the CPU, see ``distributed_job.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributed_job import BATCH, EPOCHS, ROWS

JOB = Path(__file__).with_name("distributed_job.py")
RANKS, STEPS = 2, 6


@pytest.fixture(scope="module", params=[0, pytest.param(2, marks=pytest.mark.slow)], ids=["no workers", "2 workers"])
def ranks(request, tmp_path_factory, bert_folder):
    """What each rank saw of the same runs; with the number of data workers."""
    folder = tmp_path_factory.mktemp("distributed")
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={RANKS}",
        "--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0",
        str(JOB), bert_folder, str(folder), str(request.param),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert 0 == done.returncode, done.stderr[-4000:]
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(RANKS)]


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
