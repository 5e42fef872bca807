"""What a run's arguments warn of before it begins: plans that will not be made, and arguments that change nothing."""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

import numpy as np
import pytest
from conftest import make_pairs, make_static_model
from datasets import DatasetDict
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.losses import GuardedMultipleNegativesRankingLoss
from gcbs_st.training.hardness import HardnessSchedule, largest_lag

B = 8
NOTHING = "No batch of this run will be planned"
IDLE = "which has no effect in this run"
LAG = "batches are as hard as is scheduled when a plan is made"
pytestmark = pytest.mark.usefixtures("one_thread")


class Run:
    """A run of two epochs of 10 steps, with what it warned of and when it planned."""

    def __init__(self, caplog, folder, rows: Any = None, loss=None, trainer_class=GCBSTrainer, **given: Any) -> None:
        model = make_static_model()
        options = {
            "per_device_train_batch_size": B, "num_train_epochs": 2, "save_strategy": "no", "planner": "bisect", **given
        }  # fmt: skip
        args = GCBSTrainingArguments(str(folder), report_to="none", disable_tqdm=True, use_cpu=True, **options)
        made = MultipleNegativesRankingLoss(model) if loss is None else loss(model)
        trainer = trainer_class(model, args, make_pairs(80) if rows is None else rows, loss=made)
        with caplog.at_level(logging.WARNING, "gcbs_st"):
            trainer.train()
        said = [record.getMessage() for record in caplog.records if record.name.startswith("gcbs_st")]
        self.trainer, self.said = trainer, [text for text in said if NOTHING in text or IDLE in text or LAG in text]
        self.planned_at = [
            entry["step"] for entry in trainer.state.log_history if any(key.endswith("/plan_seconds") for key in entry)
        ]


class Own(GCBSTrainer):
    """Plans in its own way."""

    def plan_batches(self, anchors, positives, batch_size, rng):
        return rng.permutation(len(anchors))


# ---------------------------------------------------------------- runs that plan nothing


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"planner_warmup_steps": 20}, "planner_warmup_steps=20 .* leave none of its 20 steps"),
        ({"max_steps": 6, "planner_warmup_steps": 9}, "leave none of its 6 steps"),
        ({"planner_cooldown_steps": 20}, "planner_cooldown_steps=20 leave none"),
        ({"planner_warmup_steps": 12, "planner_cooldown_steps": 0.4}, "planner_cooldown_steps=0.4 leave none"),
        ({"embedding_source": "harvest", "num_train_epochs": 1}, "Train more epochs, or use first_plan='encode'"),
        ({"embedding_source": "harvest", "num_train_epochs": 1, "replan_steps": 3}, "of which this run plans none"),
        ({"embedding_source": "harvest", "planner_cooldown_steps": 10}, "of which this run plans none"),
    ],
)
def test_a_run_that_plans_nothing_says_so(caplog, tmp_path, given, why):
    """Once, before it runs; and it is true."""
    run = Run(caplog, tmp_path, **given)
    assert len(run.said) == 1
    assert run.said[0].startswith(NOTHING)
    assert re.search(why, run.said[0])
    assert run.planned_at == []


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"planner_warmup_steps": 17},
        {"planner_warmup_steps": 12, "planner_cooldown_steps": 0.3},
        {"embedding_source": "harvest"},
        {"embedding_source": "harvest", "num_train_epochs": 1, "first_plan": "encode"},
        {"embedding_source": "harvest", "num_train_epochs": 1, "replan_steps": 3, "embedding_max_age": 5},
        {
            "embedding_source": "harvest", "num_train_epochs": 1, "replan_steps": 3, "planner": "random_walk",
            "planner_options": {"exact_cover": False},
        },
    ],
)  # fmt: skip
def test_a_run_that_plans_says_nothing(caplog, tmp_path, given):
    """Also where plans come late, or rows are drawn again."""
    run = Run(caplog, tmp_path, **given)
    assert run.said == []
    assert run.planned_at


def test_rows_that_start_over_are_planned_from_what_was_harvested(caplog, tmp_path):
    """A small dataset whose weight makes it pass several times within one epoch."""
    rows = DatasetDict({"large": make_pairs(160), "small": make_pairs(40, seed=1)})
    given = {"embedding_source": "harvest", "num_train_epochs": 1, "dataset_weights": 0.0}
    run = Run(caplog, tmp_path, rows, **given)
    assert run.said == []
    assert run.planned_at


@pytest.mark.parametrize(
    "given", [{"planner": "random", "planner_warmup_steps": 500}, {"planner_hardness": 0, "planner_warmup_steps": 500}]
)
def test_random_batches_that_were_asked_for_are_no_surprise(caplog, tmp_path, given):
    """Nothing is planned, as the user has it."""
    assert Run(caplog, tmp_path, **given).said == []


# ---------------------------------------------------------------- arguments that change nothing


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"first_plan": "encode"}, "first_plan: got 'encode', .* it is for embedding_source='harvest'"),
        ({"embedding_max_age": 3}, "embedding_max_age: got 3, "),
        ({"embedding_dtype": "float16"}, "embedding_dtype: got 'float16', "),
        ({"embedding_storage": "disk"}, "embedding_storage: got 'disk', "),
        ({"replan_steps": 10}, "replan_steps: got 10, .* within 10 steps"),
        ({"replan_steps": 8, "max_steps": 6}, "replan_steps: got 8, .* within 6 steps"),
        ({"planner_margin": 0.9}, "planner_margin: got 0.9, .* bisect does not ask .* best, partition and hobit do"),
        ({"planner_reference": "initial"}, "planner_reference: got 'initial', .* bisect does not ask"),
        ({"planner": "best", "planner_reference": "initial"}, "planner_reference: .* no margin for it to go by"),
        ({"planner": "gcbs", "planner_margin": 0.9}, "planner_margin: got 0.9, .* gcbs does not ask"),
    ],
)
def test_an_argument_that_changes_nothing_is_named(caplog, tmp_path, given, expected):
    """Once, with why; the run goes on."""
    run = Run(caplog, tmp_path, **given)
    assert len(run.said) == 1
    assert re.match(expected, run.said[0])
    assert run.planned_at


@pytest.mark.parametrize(
    "given",
    [
        {"replan_steps": 9},
        {"planner": "best", "planner_margin": 0.9},
        {"planner": "best", "planner_margin": 0.9, "planner_reference": "initial"},
        {"planner": "partition", "planner_margin": 0.9},
        {"planner": "hobit", "planner_margin": 0.9},
        {"embedding_source": "harvest", "embedding_dtype": "float16", "embedding_max_age": 9},
        {"trainer_class": Own, "planner_margin": 0.9},  # which may ask
        {
            "planner": "best", "planner_reference": "initial",
            "loss": lambda model: GuardedMultipleNegativesRankingLoss(model, margin=0.9),
        },
    ],
)  # fmt: skip
def test_an_argument_that_changes_something_is_not(caplog, tmp_path, given):
    """Those above, where they are asked."""
    assert Run(caplog, tmp_path, **given).said == []


@pytest.mark.parametrize(("window", "fits"), [(5, False), (15, False), (16, True)])
def test_a_window_of_less_than_two_batches_is_refused(caplog, tmp_path, window, fits):
    """Its rows could make one batch only, whatever planned them; before anything is embedded."""
    if fits:
        assert Run(caplog, tmp_path, planning_window=window, max_steps=6).planned_at
        return
    with pytest.raises(ValueError, match=f"planning_window: got {window} rows, expected at least 16"):
        Run(caplog, tmp_path, planning_window=window)


# ---------------------------------------------------------------- hardness that no plan follows


@pytest.mark.parametrize(
    "given, expected",
    [
        (
            {"planner_hardness": [[0, 1], [1, 0]], "num_train_epochs": 1},
            "step 0 on are of hardness 1.00, .* at step 9, .* says 0.10",
        ),
        ({"planner_hardness": [[0, 1], [1, 0]]}, "step 0 on are of hardness 1.00, .* at step 9, .* says 0.55"),
        (
            {"planner_hardness": [[0, 0], [1, 1]], "planner_warmup_steps": 4, "num_train_epochs": 1},
            "from step 4 on are of hardness 0.40, .* at step 9, .* 0.90. Set replan_steps",
        ),
        (
            {"cluster_schedule": "curriculum", "planner": "bisect", "num_train_epochs": 1},
            "cluster_schedule: .* at step 8",
        ),
        ({"planner_hardness": [[0, 1], [1, 0]], "num_train_epochs": 3}, None),
        ({"planner_hardness": [[0, 1], [1, 0]], "num_train_epochs": 1, "replan_steps": 0.25}, None),
        ({"planner_hardness": [[0, 1], [1, 0]], "num_train_epochs": 1, "planning_window": 32}, None),
        ({"planner_hardness": [[0, 1], [0.5, 1], [0.5, 0]], "num_train_epochs": 1}, None),
        ({"planner_hardness": 0.5, "num_train_epochs": 1}, None),
        # Random batches at the end are behind no schedule.
        ({"planner_hardness": [[0, 1], [1, 0]], "num_train_epochs": 1, "planner_cooldown_steps": 0.7}, None),
    ],
)
def test_a_schedule_that_moves_on_without_a_plan(caplog, tmp_path, given, expected):
    """Said before anything has run, once; not where plans follow the schedule."""
    said = Run(caplog, tmp_path, **given).said
    assert len(said) == (expected is not None)
    assert expected is None or (LAG in said[0] and re.search(expected, said[0]))


def test_the_plans_that_were_foreseen_are_those_that_were_made(caplog, tmp_path):
    """A callback that says when it plans must not be of another mind than the one that does."""
    run = Run(
        caplog, tmp_path, make_pairs(200), replan_steps=9, planner_warmup_steps=4, planner_cooldown_steps=7,
        planner_hardness=[[0, 1], [0.3, 0.4], [1, 0.2]], planner_view="model",
    )  # fmt: skip
    trainer = run.trainer
    assert run.planned_at == trainer._calendar.plan_steps(trainer.args, trainer.state.max_steps)
    assert run.planned_at == [4, 9, 15, 18, 25, 34]


def test_the_largest_lag_is_that_of_every_step():
    """Of a short run all steps are looked at: the same as by going through them."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = np.sort(rng.random(4)), rng.random(4)
        schedule = HardnessSchedule.from_field([[0, 1], *zip(*(side.tolist() for side in points), strict=True)])
        scheduled = functools.partial(schedule.at, max_steps=90)
        plans = np.unique(rng.integers(0, 90, 5))
        lags = [abs(scheduled(step) - scheduled(plans[plans <= step].max())) for step in range(plans[0], 90)]
        found = largest_lag(scheduled, plans, 90)
        assert abs(found.hardness - found.scheduled) == pytest.approx(max(lags))
