"""The plans that a run keeps: the ones in force, also after an interruption, and what is refused of them."""

from __future__ import annotations

import numpy as np
import pytest
from inspection import make_subject, oracle, train

from gcbs_st.batches import plan_history as plan_history_module
from gcbs_st.batches.plan_history import plan_files, read_stored_plan, step_of
from gcbs_st.reports.inspection.plan_table import plan_table


@pytest.mark.parametrize(
    "settings",
    [{"planner": "random"}, {"replan_steps": 4}, {"planner_warmup_steps": 3}, {"planner_cooldown_steps": 3}],
)
def test_the_plan_in_force_at_each_step_is_kept(tmp_path, settings):
    """The newest file at or before a step holds the order that the step was drawn from, and how much of it is older."""
    drawn = train(tmp_path, **settings)
    files = {step_of(file): read_stored_plan(file)[""] for file in plan_files(tmp_path / "plans")}
    assert len(files) >= 2
    for step, (order,) in enumerate(drawn):
        kept = files[max(at for at in files if at <= step)]
        np.testing.assert_array_equal(order, kept.order)
        cooled = step >= len(drawn) - settings.get("planner_cooldown_steps", 0)
        planner = "random" if cooled else "gcbs"
        assert (step // 12, 16, 200, planner) == (kept.epoch, kept.batch_size, kept.rows, kept.planner)
        # The host's loader is a batch ahead.
        assert kept.step % 12 <= kept.drawn <= kept.step % 12 + 1
    plans = list(files.values())
    for before, after in zip(plans, plans[1:], strict=False):
        older = after.drawn * 16
        if after.epoch == before.epoch:
            assert older > 0
            np.testing.assert_array_equal(before.order[:older], after.order[:older])
            assert not np.array_equal(before.order[older:], after.order[older:])
        else:
            assert 0 == older
    assert [] == [file.name for file in (tmp_path / "plans").iterdir() if not file.name.endswith(".npz")]


def test_a_resumed_run_keeps_what_an_uninterrupted_one_keeps(tmp_path):
    """Plans behind the checkpoint that the interrupted run left are replaced, those before it stay."""
    train(tmp_path / "whole", replan_steps=4)
    train(tmp_path / "halted", replan_steps=4)
    plans = tmp_path / "halted" / "plans"
    for file in plan_files(plans):
        if step_of(file) > 12:
            file.unlink()
    (plans / "step-00000014.npz").write_bytes(b"half")
    train(tmp_path / "halted", replan_steps=4, checkpoint=str(tmp_path / "halted" / "checkpoint-10"))
    assert [file.name for file in plan_files(tmp_path / "whole" / "plans")] == [
        file.name for file in plan_files(plans)
    ]
    for file in plan_files(plans):
        expected, found = (
            read_stored_plan(folder / file.name)[""] for folder in (tmp_path / "whole" / "plans", plans)
        )
        np.testing.assert_array_equal(expected.order, found.order)


def test_of_many_plans_every_second_one_is_dropped(tmp_path, monkeypatch):
    """The first and the last one always stay."""
    monkeypatch.setattr(plan_history_module, "KEPT_PLANS", 5)
    train(tmp_path, replan_steps=1)
    steps = [step_of(file) for file in plan_files(tmp_path / "plans")]
    assert 2 < len(steps) <= 5
    assert (0, 21) == (steps[0], steps[-1])


@pytest.mark.parametrize(
    "damage",
    [
        {"order_0": np.array([0, 0, 1, 2])},
        {"order_0": np.array([0, 1, 2, 9])},
        {"order_0": np.array([0, 1, 2])},
        {"order_0": np.array([0.0, 1.0])},
        {"order_0": np.zeros((0,), np.int64)},
        {"batch_size": 0},
        {"rows": "many"},
        {"epoch": None},
        {"drop": "samplers"},
        {"drop": "step"},
    ],
)
def test_damaged_plans_are_refused(tmp_path, damage):
    """Each damage gets one line with the file's name."""
    from gcbs_st.files import write_arrays

    sampler = {"name": "", "epoch": 0, "plan_count": 1, "batch_size": 2, "rows": 6, "repeats": False}
    sampler |= {key: value for key, value in damage.items() if key in sampler}
    described = {"step": 0, "planner": "gcbs", "options": {}, "samplers": [sampler]}
    described.pop(damage.get("drop", ""), None)
    file = tmp_path / "step-00000000.npz"
    write_arrays(file, {"order_0": damage.get("order_0", np.array([3, 1, 0, 5]))}, described)
    with pytest.raises(ValueError, match="step-00000000.npz is damaged"):
        read_stored_plan(file)


def test_the_table_of_plans(tmp_path):
    """What was logged and what is measured stand in one line a step; columns without a number are left out."""
    train(tmp_path, replan_steps=6)
    plans = [read_stored_plan(file)[""] for file in plan_files(tmp_path / "plans")]
    log = [
        {"step": 0, "epoch": 0.0, "gcbs/gap": 1.5, "gcbs/closed": 0.25},
        {"step": 3, "epoch": 0.3, "gcbs/gap": 1.25},
        {"step": 3, "loss": 2.0},
    ]
    subject = make_subject(rows=200, size=16)
    table = plan_table(plans, log, subject)
    titles = [column["title"] for column in table["columns"]]
    assert ["step", "epoch", "closed", "gap, nats", "in-batch loss, nats", "false negatives per row"] == titles
    assert [0, 3, *[plan.step for plan in plans[1:]]] == [row[0] for row in table["rows"]]
    assert [0, 1, 0.25, 1.5] == table["rows"][0][:4]
    assert [3, 1, None, 1.25, None, None] == table["rows"][1]
    for plan, row in ((plans[0], table["rows"][0]), (plans[1], table["rows"][2])):
        decided = plan.order.reshape(-1, 16)[plan.drawn :]
        expected = np.mean([oracle(subject.anchors, subject.positives, batch, 20.0)[0] for batch in decided])
        assert (plan.step, pytest.approx(expected, abs=1e-3)) == (row[0], row[4])
    assert [] == plan_table([], [], subject)["rows"]
