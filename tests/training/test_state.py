"""What a run keeps and hands on: steps, plans and planners at the boundaries of epochs, runs and trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_pairs, make_static_model
from recorded import RecordingTrainer, weights_hash
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.planners import BestPlanner, BisectPlanner
from gcbs_st.planners.algorithms.clusters import clusters_at
from gcbs_st.training.replan_callback import ReplanCallback

B = 8

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(
    folder: Path, rows: int = 88, resume: str | None = None, trainer_class: Any = RecordingTrainer, **given: Any
) -> Any:
    """A trainer of a new static model that has trained; 88 rows are 11 steps per epoch."""
    defaults = {
        "per_device_train_batch_size": B, "num_train_epochs": 2, "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "planner": "bisect", "lr_scheduler_type": "constant",
    }  # fmt: skip
    args = GCBSTrainingArguments(str(folder), **{**defaults, **given})
    data = make_pairs(rows)
    if args.group_column:
        data = data.add_column(args.group_column, [i // 3 for i in range(rows)])
    model = make_static_model()
    trainer = trainer_class(model, args, data, loss=MultipleNegativesRankingLoss(model))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def planned_at(trainer: Any) -> list[int]:
    """The steps at which plans were logged."""
    return [entry["step"] for entry in trainer.state.log_history if "gcbs/planned_rows" in entry]


@pytest.mark.parametrize("replan_steps", [0, 7, 3])
def test_a_run_that_ended_goes_on_as_a_longer_one(tmp_path, replan_steps):
    """Seven steps resumed to thirteen draw the batches of thirteen at once: the last step begins no cool-down."""
    given = {"replan_steps": replan_steps, "save_strategy": "steps", "save_steps": 7}
    whole = trained(tmp_path / "whole", max_steps=13, **given)
    first = trained(tmp_path / "parts", max_steps=7, **given)
    then = trained(tmp_path / "parts", max_steps=13, resume=str(tmp_path / "parts" / "checkpoint-7"), **given)
    assert whole.trained == first.trained + then.trained
    assert weights_hash(whole.model) == weights_hash(then.model)


@pytest.mark.parametrize(
    ("rows", "share", "expected"),
    [(88, 0.5, [0, 6, 11, 17]), (96, 0.9, [0, 12]), (96, 0.75, [0, 9, 12, 21]), (88, 4, [0, 4, 8, 11, 15, 19])],
)
def test_plans_in_mid_epoch_count_from_the_epochs_first_step(tmp_path, rows, share, expected):
    """Each epoch is planned at the same of its steps; what is one batch is not planned."""
    assert expected == planned_at(trained(tmp_path, rows, replan_steps=share))


@pytest.mark.parametrize("checkpoint", [3, 6, 11, 13, 17])
def test_a_resumed_epoch_is_planned_at_its_own_steps(tmp_path, checkpoint):
    """Counted from the epoch's first step, not from that of the resumed run."""
    given = {"replan_steps": 0.5, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 30}
    whole = trained(tmp_path / "whole", **given)
    resumed = trained(tmp_path / "more", resume=str(tmp_path / "whole" / f"checkpoint-{checkpoint}"), **given)
    assert whole.trained[checkpoint:] == resumed.trained
    assert planned_at(whole) == planned_at(resumed)
    assert weights_hash(whole.model) == weights_hash(resumed.model)


def test_a_round_robin_epoch_is_as_long_as_the_host_makes_it(tmp_path):
    """It ends with the smallest dataset, and shares of an epoch are of that."""
    from datasets import DatasetDict

    model, seen = make_static_model(), []
    args = GCBSTrainingArguments(
        str(tmp_path), per_device_train_batch_size=B, report_to="none", disable_tqdm=True, use_cpu=True,
        save_strategy="no", multi_dataset_batch_sampler="round_robin", replan_steps=0.5, num_train_epochs=1,
    )  # fmt: skip
    rows = DatasetDict(long=make_pairs(160), short=make_pairs(48, 1))
    trainer = GCBSTrainer(model, args, rows, loss=MultipleNegativesRankingLoss(model))
    callback = next(one for one in trainer.callback_handler.callbacks if isinstance(one, ReplanCallback))
    trainer.replanner.replan_tails = lambda plan=True: seen.append(trainer.state.global_step)
    callback._replan_tail = trainer.replanner.replan_tails
    trainer.train()
    assert 12 == trainer.state.global_step
    assert [0, 6] == seen, "at the end of a run that keeps no checkpoint there is nothing to plan for"


class OwnPlanner:
    """A planner of the user's with attributes that training knows more about."""

    def __init__(self) -> None:
        self.clusters_per_batch, self.epoch, self.show_progress, self.scale, self.seen = 2, 0, False, None, []

    def plan(self, anchors, positives, batch_size, rng):
        self.seen.append((self.clusters_per_batch, self.epoch, self.scale))
        return rng.permutation(len(anchors))


@pytest.mark.parametrize(
    "make", [OwnPlanner, lambda: BisectPlanner(clusters_per_batch=2), lambda: BestPlanner(clusters_per_batch=2)]
)
def test_the_users_planner_is_as_it_was(tmp_path, make):
    """Two trainers with one planner plan as two with one each, and its attributes are the user's."""
    planner = make()
    before = {name: value for name, value in vars(planner).items() if name != "seen"}
    given = {"cluster_schedule": "curriculum", "num_train_epochs": 4}
    first = trained(tmp_path, planner=planner, **given)
    again = trained(tmp_path, planner=planner, **given)
    assert before == {name: value for name, value in vars(planner).items() if name != "seen"}
    assert first.trained == again.trained
    if isinstance(planner, OwnPlanner):
        assert [(8, 0, 20.0), (8, 1, 20.0), (4, 2, 20.0), (2, 3, 20.0)] == planner.seen[:4] == planner.seen[4:]


@pytest.mark.parametrize("batch_size", [1, 7, 12, 24, 48, 100, 3 * 64])
@pytest.mark.parametrize("at_end", [1, 2, 3])
def test_a_curriculum_steps_through_divisors(batch_size, at_end):
    """From clusters of one row to the planner's own, in equal stages, each a divisor, each at most about half."""
    if batch_size % at_end:
        pytest.skip("the planner could not make such batches at all")
    stages = [clusters_at(share, batch_size, at_end) for share in np.linspace(0, 1, 1000, endpoint=False)]
    different = list(dict.fromkeys(stages))
    assert batch_size == different[0] and at_end == different[-1] == clusters_at(1.0, batch_size, at_end)
    assert all(batch_size % clusters == 0 for clusters in different)
    assert (
        all(2 * later <= former for former, later in zip(different, different[1:], strict=False)) or len(different) < 2
    )
    lengths = [stages.count(clusters) for clusters in different]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("size, rows", [(12, 96), (24, 96), (48, 192), (100, 400)])
def test_a_curriculum_for_any_batch_size(tmp_path, size, rows):
    """It trains to its end."""
    trainer = trained(
        tmp_path, rows, per_device_train_batch_size=size, cluster_schedule="curriculum", num_train_epochs=3
    )
    assert 3 * (rows // size) == trainer.state.global_step


def test_clusters_that_make_no_batch_are_refused_before_anything_is_embedded(tmp_path, monkeypatch):
    """The message says what would divide it."""
    monkeypatch.setattr(
        "gcbs_st.embeddings.row_encoder.encode_rows", lambda *args, **given: pytest.fail("rows were embedded")
    )
    with pytest.raises(ValueError, match="clusters_per_batch: got 3 with 8 rows .*expected a divisor of 8"):
        trained(tmp_path, planner_options={"clusters_per_batch": 3})


def test_harvest_with_small_budgets_and_groups(tmp_path):
    """Where no batch holds rows with embeddings alone there are no figures to log, and nothing fails."""
    trainer = trained(
        tmp_path, 96, embedding_source="harvest", embedding_max_age=0, embedding_budget=2 * B, group_column="photo",
        replan_steps=2, planner="bisect",
    )  # fmt: skip
    assert 24 == trainer.state.global_step
    plans = [entry for entry in trainer.state.log_history if "gcbs/planned_rows" in entry]
    assert plans and any("gcbs/gap" in entry for entry in plans)
