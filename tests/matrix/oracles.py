"""What "works" means: checks of a run that know nothing of how plans are made."""

from __future__ import annotations

import math
from typing import Any

import torch

from matrix.case import Run


def check_run(run: Run) -> None:
    """Steps, loss and weights as expected; batches full, those of a plan, and each row at most once an epoch."""
    case, ranks = run.case, run.place.ranks
    expected = case.steps[ranks > 1]
    assert expected == run.trainer.state.global_step, f"{run.trainer.state.global_step} steps, expected {expected}"
    assert run.trainer.all_finite(), f"losses {run.trainer.losses}"
    assert math.isfinite(run.logged("train_loss")[0])
    after = run.model.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in run.before.items()), "no weight changed"
    assert {expected} == {batches[-1][1] for batches in run.by_rank}, "the ranks took different numbers of steps"
    check_rows(run)
    if case.planned_from is not None:
        check_plans(run)
    if case.verify and run.trainer.is_world_process_zero() and run.trainer.args.embedding_source == "encode":
        assert run.trainer.verified == len(run.trainer.plans) or case.planned_from is None


def check_rows(run: Run) -> None:
    """The batches of all ranks are full, and no row is drawn twice in an epoch by whichever rank."""
    drawn: set[Any] = set()
    for step in zip(*run.by_rank, strict=True):
        assert 1 == len({(epoch, number, name) for epoch, number, name, _ in step}), "a step of two datasets"
    for batches in run.by_rank:
        for epoch, step, name, rows in batches:
            size = run.case.planned_size
            assert size == len(rows) or run.case.host_batches, f"step {step}: a batch of {len(rows)} rows"
            keys = {(epoch, name, row) for row in rows}
            assert len(rows) == len(keys), f"step {step}: a row twice in a batch"
            assert run.case.repeats or not keys & drawn, f"step {step}: rows were drawn twice in epoch {epoch}"
            drawn |= keys


def check_plans(run: Run) -> None:
    """From `planned_from` on batches are blocks of a plan made before; those of the ranks' step stand side by side.

    After `planned_until` they are of no plan.
    """
    size, ranks = run.case.planned_size, run.place.ranks
    plans, first = run.plans, run.case.planned_from[ranks > 1]
    last = run.case.steps[ranks > 1] if run.case.planned_until is None else run.case.planned_until[ranks > 1]
    assert plans, "no plan was made"
    for step in zip(*run.by_rank, strict=True):
        _, number, name, _ = step[0]
        if number < first or (run.case.host_batches and name not in {plan["name"] for plan in plans}):
            continue
        made = [plan["rows"] for plan in plans if plan["step"] < number and plan["name"] == name]
        # Backwards: the newest plan is the one in force.
        groups = (frozenset(row for *_, rows in step for row in rows), [frozenset(rows) for *_, rows in step])
        planned = any(is_step_of(plan, *groups, size, ranks) for plan in reversed(made))
        assert planned == (number <= last), (
            f"step {number}: its batches are {'' if planned else 'no '}blocks of a plan"
        )


def is_step_of(
    plan: list[int], together: frozenset[int], batches: list[frozenset[int]], size: int, ranks: int
) -> bool:
    """Whether the batches of the ranks are the blocks of one step of a plan."""
    for start in range(0, len(plan) - size * ranks + 1, size * ranks):
        block = plan[start : start + size * ranks]
        if together == frozenset(block):
            return batches == [frozenset(block[i : i + size]) for i in range(0, len(block), size)]
    return False


def check_equal_weights(hashes: list[str]) -> None:
    """All ranks end with the same weights."""
    assert 1 == len(set(hashes)), "the ranks end with different weights"


def check_resumed(whole: Run, resumed: Run) -> None:
    """A resumed run draws the batches that the whole run drew from there on, and ends with the same bits of weights."""
    step = whole.case.save_at[whole.place.ranks > 1]
    for before, after in zip(whole.by_rank, resumed.by_rank, strict=True):
        expected = [entry for entry in before if entry[1] > step]
        assert step + 1 == after[0][1], f"it went on with step {after[0][1]}, expected {step + 1}"
        assert expected == after, "it trained on other batches"
    assert whole.weights == resumed.weights, "the weights at the end differ"


def check_texts_apart(run: Run, values: list[Any]) -> None:
    """No batch holds two rows of the same value."""
    for batches in run.by_rank:
        for _, step, _, rows in batches:
            assert len(rows) == len({values[row] for row in rows}), f"step {step}: two rows that are to be kept apart"
