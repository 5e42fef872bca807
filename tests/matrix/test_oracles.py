"""The matrix's own checks: each has to see what it is for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from matrix import launch, matrix_job
from matrix.case import BATCH, COLUMNS, DDP, SINGLE, Case, Place, Run
from matrix.oracles import check_equal_weights, check_plans, check_resumed, check_rows, check_texts_apart

ROWS = list(range(64))


def seen(by_rank, plans=((0, ROWS),), ranks=1, weights="same", **given) -> Run:
    """A run of which it is told what each rank drew, as [epoch, step, rows]."""
    place = Place(None, None, ranks)
    run = Run(Case("a case", **given), place, SimpleNamespace(), None, {}, weights=weights)
    run.by_rank = [[[epoch, step, "", rows] for epoch, step, rows in batches] for batches in by_rank]
    run.plans = [{"step": step, "name": "", "rows": rows} for step, rows in plans]
    return run


def block(index: int) -> list[int]:
    """A batch as it was planned."""
    return ROWS[index * BATCH : (index + 1) * BATCH]


def complaints(run: Run) -> list[str]:
    """What the checks of batches have against a run."""
    found = []
    for check in (check_rows, check_plans):
        try:
            check(run)
        except AssertionError as error:
            found.append(str(error))
    return found


def test_planned_batches_pass():
    """Blocks of a plan in any order, by one process or two; and rows that recur in the next epoch."""
    for run in (
        seen([[[0, 1, block(3)], [0, 2, block(0)], [1, 3, block(3)]]]),
        seen([[[0, 1, block(2)], [0, 2, block(0)]], [[0, 1, block(3)], [0, 2, block(1)]]], ranks=2),
    ):
        assert [] == complaints(run)


@pytest.mark.parametrize(
    ("by_rank", "message"),
    [
        ([[[0, 1, block(0)[:7]]]], "a batch of 7 rows"),
        ([[[0, 1, [*block(0)[:7], 0]]]], "a row twice in a batch"),
        ([[[0, 1, block(0)], [0, 2, block(0)]]], "drawn twice in epoch 0"),
        ([[[0, 1, block(0)]], [[0, 1, block(0)]]], "drawn twice in epoch 0"),
    ],
)
def test_rows_that_are_drawn_wrongly_are_seen(by_rank, message):
    """Short batches, rows twice in a batch, in an epoch, or on two ranks."""
    with pytest.raises(AssertionError, match=message):
        check_rows(seen(by_rank, ranks=len(by_rank)))


@pytest.mark.parametrize(
    ("by_rank", "plans"),
    [
        ([[[0, 1, [*block(0)[:7], 8]]]], [(0, ROWS)]),  # a row of the next batch
        ([[[0, 1, block(0)]]], [(1, ROWS)]),  # a plan made after the step
        ([[[0, 1, block(1)]], [[0, 1, block(2)]]], [(0, ROWS)]),  # two ranks, blocks of two steps
        ([[[0, 1, block(1)]], [[0, 1, block(0)]]], [(0, ROWS)]),  # the step of the ranks the wrong way round
        ([[[0, 1, block(0)]], [[0, 1, block(1)]]], [(0, block(0) + block(2)), (0, block(1) + block(3))]),  # two plans
    ],
)
def test_batches_that_are_no_blocks_are_seen(by_rank, plans):
    """Batches across a plan's blocks, of a later plan, or of steps that do not belong together."""
    with pytest.raises(AssertionError, match="no blocks of a plan"):
        check_plans(seen(by_rank, plans, ranks=len(by_rank)))


def test_a_resumed_run_that_differs_is_seen():
    """Other batches, another first step, other weights."""
    whole = seen([[[0, 1, block(0)], [0, 2, block(1)], [0, 3, block(2)]]], save_at=(1, 1))
    check_resumed(whole, seen([[[0, 2, block(1)], [0, 3, block(2)]]]))
    for run, message in (
        (seen([[[0, 2, block(2)], [0, 3, block(1)]]]), "other batches"),
        (seen([[[0, 3, block(2)]]]), "went on with step 3, expected 2"),
        (seen([[[0, 2, block(1)], [0, 3, block(2)]]], weights="others"), "weights at the end differ"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_resumed(whole, run)
    with pytest.raises(AssertionError, match="different weights"):
        check_equal_weights(["one", "other"])


def test_rows_that_meet_are_seen():
    """Two rows of one value in a batch."""
    check_texts_apart(seen([[[0, 1, block(0)]]]), ROWS)
    with pytest.raises(AssertionError, match="kept apart"):
        check_texts_apart(seen([[[0, 1, block(0)]]]), [0, 0, *ROWS[2:]])


def test_a_rank_that_is_alone_says_so(tmp_path, monkeypatch):
    """It does not wait for ever for the others, and tells what it has itself."""
    monkeypatch.setattr(matrix_job, "RANKS", 2)
    monkeypatch.setattr(matrix_job, "WAIT_SECONDS", 0.1)
    exchange = matrix_job.Exchange(tmp_path)
    (tmp_path / "1.1").write_text('"of rank 1"')
    assert ["of rank 0", "of rank 1"] == exchange.tell("of rank 0")
    with pytest.raises(matrix_job.AloneError, match=r"waits for ranks \[1\]; it itself has a failure"):
        exchange.tell("a failure")


def test_a_job_that_ends_early_costs_one_case(tmp_path, monkeypatch):
    """The case that it ended in has failed, with the log's end; the others are run by another job."""
    jobs = []

    def run_job(names, folder, ranks):
        jobs.append((ranks, names))
        if ranks == 1 and "b" in names:
            told = [("a", SINGLE, "works"), ("a", "resume", "works"), ("b", SINGLE, "started")]
            return "a crash", [{"case": name, "column": c, "outcome": outcome} for name, c, outcome in told]
        columns = COLUMNS[:2] if ranks == 1 else COLUMNS[2:]
        return None, [{"case": name, "column": c, "outcome": "works"} for name in names for c in columns]

    monkeypatch.setattr(launch, "run_job", run_job)
    records = launch.run_cases([Case("a"), Case("b"), Case("c")], tmp_path)
    assert [(1, ["a", "b", "c"]), (1, ["c"]), (2, ["a", "b", "c"])] == jobs
    assert "failed" == records["b", SINGLE]["outcome"]
    assert "the job ended: a crash" == records["b", "resume"]["why"]
    assert {"works"} == {records[name, SINGLE]["outcome"] for name in "ac"} | {records["b", DDP]["outcome"]}
