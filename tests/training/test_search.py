"""Tests of what the host searches for: a batch size that fits (`auto_find_batch_size`), and hyper-parameters."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pairs, make_static_model
from datasets import Dataset, DatasetDict
from recorded import RecordingTrainer, weights_hash
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers.trainer_utils import HPSearchBackend

from gcbs_st import GCBSTrainingArguments
from gcbs_st.batches.checkpoint import PLAN_FILE
from gcbs_st.planners import BisectPlanner, GCBSPlanner, RandomPlanner

ROWS = 96
QUIET: dict[str, Any] = {
    "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1,
    "planner": "bisect", "num_train_epochs": 1, "learning_rate": 1e-2,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


class Hungry(RecordingTrainer):
    """Runs out of memory with more than `most` rows a batch, from step `when` on; keeps what was planned."""

    most, when = 12, 0

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        if len(inputs["texts"]) > self.most and self.state.global_step >= self.when:
            raise RuntimeError("CUDA out of memory. Tried to allocate more than there is.")
        return super().training_step(model, inputs, *args)

    def plan_batches(self, anchors, positives, batch_size, rng):
        self.sizes = [*getattr(self, "sizes", []), batch_size]
        return super().plan_batches(anchors, positives, batch_size, rng)


def trained(folder: Path, rows: Any, resume: Any = None, trainer_class: Any = Hungry, **given: Any) -> Hungry:
    """A trainer that has trained to the end, from 16 rows a batch."""
    model = make_static_model()
    args = GCBSTrainingArguments(
        str(folder), **{**QUIET, "per_device_train_batch_size": 16, "auto_find_batch_size": True, **given}
    )
    trainer = trainer_class(model, args, rows, loss=MultipleNegativesRankingLoss(model))
    trainer.train(resume)
    return trainer


def epochs(trainer: Hungry, rows: Dataset, size: int) -> list[Counter[int]]:
    """How often each row was trained on, by epoch; all batches must be of one size."""
    ids = {tuple(row.values()): i for i, row in enumerate(rows)}
    assert {size} == {len(texts) for _, texts in trainer.trained}
    batches = [[ids[text] for text in texts] for _, texts in trainer.trained]
    each = len(rows) // size
    return [Counter(np.concatenate(batches[at : at + each])) for at in range(0, len(batches), each)]


# ---------------------------------------------------------------- a batch size that fits


@pytest.mark.parametrize("source", ["encode", "harvest"])
@pytest.mark.parametrize("workers", [0, 1])
def test_plans_are_of_the_batch_size_that_fits(tmp_path, source, workers):
    """16 rows do not fit, nor do 14; plans and batches are of 12 rows, and no row comes twice in an epoch."""
    rows = make_pairs(ROWS)
    trainer = trained(tmp_path, rows, embedding_source=source, num_train_epochs=2, dataloader_num_workers=workers)
    assert {12: 2 * ROWS // 12} == Counter(len(texts) for _, texts in trainer.trained)
    assert [Counter(range(ROWS))] * 2 == epochs(trainer, rows, 12)
    assert 12 == trainer.state.train_batch_size == trainer.sizes[-1]
    if source == "encode":
        assert [16, 14, 12, 12] == trainer.sizes
    assert "bisect" == trainer.args.planner


def test_without_it_the_error_is_raised_as_ever(tmp_path):
    """Memory that runs out is no reason to train otherwise, unless that is asked for."""
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        trained(tmp_path, make_pairs(ROWS), auto_find_batch_size=False)


def test_memory_that_runs_out_in_the_middle(tmp_path):
    """The run starts anew with smaller batches: its plans are whole epochs of them."""

    class Later(Hungry):
        when = 3

    rows = make_pairs(ROWS)
    trainer = trained(tmp_path, rows, trainer_class=Later, num_train_epochs=2, replan_steps=2)
    assert [16] * 3 + [14] * 3 == [len(texts) for _, texts in trainer.trained[:6]]
    trainer.trained = trainer.trained[6:]
    assert [Counter(range(ROWS))] * 2 == epochs(trainer, rows, 12)
    assert 2 * ROWS // 12 == trainer.state.global_step


@pytest.mark.parametrize("kind", ["round_robin", "proportional"])
def test_several_datasets_of_smaller_batches(tmp_path, kind):
    """Each dataset's sampler is of the size that fits."""
    parts = DatasetDict(a=make_pairs(48), b=make_pairs(ROWS, seed=3))
    trainer = trained(tmp_path, parts, multi_dataset_batch_sampler=kind)
    assert {12} == {len(texts) for _, texts in trainer.trained}
    assert [4, 8] == [len(sampler) for sampler in trainer.planned_samplers.values()]
    assert [12, 12] == trainer.sizes[-2:]


@pytest.mark.parametrize("source", [pytest.param("encode", marks=pytest.mark.slow), "harvest"])
def test_a_resumed_run_goes_on_with_the_batch_size_that_was_found(tmp_path, source):
    """Bit by bit, and without running out of memory first."""
    rows = make_pairs(ROWS)
    given = {
        "embedding_source": source, "num_train_epochs": 2, "replan_steps": 3, "save_strategy": "steps",
        "save_steps": 1,
    }  # fmt: skip
    whole = trained(tmp_path, rows, **given)
    for step in (3, 8):
        resumed = trained(tmp_path / "resumed", rows, resume=str(tmp_path / f"checkpoint-{step}"), **given)
        assert whole.trained[step:] == resumed.trained
        assert weights_hash(whole.model) == weights_hash(resumed.model)


def test_a_resumed_run_that_runs_out_of_memory(tmp_path, caplog):
    """Its plan is of other batches and is made anew, which is said; harvested rows are taken over at each attempt."""

    class Hungrier(Hungry):
        most = 8

    rows = make_pairs(ROWS)
    given = {"embedding_source": "harvest", "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    trained(tmp_path, rows, **given)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "gcbs_st"):
        resumed = trained(
            tmp_path / "resumed", rows, str(tmp_path / "checkpoint-9"), Hungrier, **{**given, "save_strategy": "no"}
        )
    messages = [record.message for record in caplog.records if "cannot be resumed" in record.message]
    assert [True] * 3 == ["its batch_size is 12, but this run has" in message for message in messages], "10, 9, 8"
    ages = [e["gcbs/embedding_age"] for e in resumed.state.log_history[-40:] if "gcbs/embedding_age" in e]
    assert max(ages) > 0, "planned with rows that were harvested before the run was resumed"


# ---------------------------------------------------------------- hyper-parameters

SPACE = {"planner": ["bisect", "random", "gcbs"], "replan_steps": [0.0, 4.0]}


class Searching(RecordingTrainer):
    """Keeps, trial by trial, what was trained with."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.trained = []
        output = super().train(*args, **kwargs)
        plans = sum("gcbs/gap" in entry for entry in self.state.log_history)
        kept = self.row_memory.source, len(self.model._forward_pre_hooks), len(self.model[0]._forward_hooks)
        settings = self.args.planner, self.args.replan_steps, type(self.planner)
        self.trials = [*getattr(self, "trials", []), (settings, plans, kept, len(self.trained[0][1]))]
        return output


def searching(folder: Path, **given: Any) -> Searching:
    """A trainer that makes its model anew for each trial."""
    args = GCBSTrainingArguments(
        str(folder), **{**QUIET, "per_device_train_batch_size": 8, "embedding_source": "harvest", **given}
    )
    return Searching(
        None,
        args,
        make_pairs(ROWS),
        eval_dataset=make_pairs(16, seed=8),
        model_init=lambda trial=None: make_static_model(),
        loss=MultipleNegativesRankingLoss,
    )


def test_the_planner_may_be_searched_for(tmp_path):
    """Each trial plans as its settings say, in a folder of its own, and leaves nothing behind."""
    optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trainer = searching(tmp_path, save_strategy="epoch", num_train_epochs=2)
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {
            **{name: trial.suggest_categorical(name, values) for name, values in SPACE.items()},
            "per_device_train_batch_size": 8 if trial.number else 16,
        },
        backend="optuna",
        n_trials=6,
        direction="minimize",
        sampler=optuna.samplers.GridSampler(SPACE, seed=1),
    )
    assert set(best.hyperparameters) == set(SPACE)
    classes = {"bisect": BisectPlanner, "random": RandomPlanner, "gcbs": GCBSPlanner}
    assert {(p, r, classes[p]) for p in SPACE["planner"] for r in SPACE["replan_steps"]} == {
        t[0] for t in trainer.trials
    }
    for (planner, steps, _), plans, kept, size in trainer.trials:
        assert (None, 0, 0) == kept
        assert (plans == 0) == (planner == "random")
        if planner != "random":
            assert (plans > 1) == (steps > 0), "plans in mid-epoch; none before rows were harvested"
        assert size in (8, 16)
    assert [16] + [8] * 5 == [size for *_, size in trainer.trials]
    for trial in range(6):
        step = 2 * ROWS // (8 if trial else 16)
        assert (tmp_path / f"run-{trial}" / f"checkpoint-{step}" / PLAN_FILE).is_file()
    assert not list(tmp_path.glob("checkpoint-*"))


def train_in_a_search(trainer: Searching, number: int, resume: bool | None = None, **params: Any) -> Searching:
    """Trains one trial, of fixed values, in the state that a trainer is in during a search."""
    optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install optuna")
    trainer.hp_search_backend = HPSearchBackend.OPTUNA
    trainer.hp_space = lambda trial: {name: trial.suggest_categorical(name, [one]) for name, one in params.items()}
    trainer.train(resume, trial=optuna.trial.FixedTrial(params, number))
    return trainer


def test_true_resumes_from_the_trials_own_folder(tmp_path):
    """Not from that of the search or of another trial; bit by bit."""
    given = {"save_strategy": "steps", "save_steps": 5, "embedding_storage": "disk"}
    trial = {"number": 3, "planner": "bisect", "replan_steps": 2.0}
    trainer = train_in_a_search(searching(tmp_path, **given), **trial)
    whole, weights = list(trainer.trained), weights_hash(trainer.model)
    assert not (tmp_path / "gcbs_embeddings").exists(), "rows on disk are kept in the folder of the trial"
    last = tmp_path / "run-3" / "checkpoint-12"
    assert last.is_dir()
    shutil.rmtree(last)
    again = train_in_a_search(searching(tmp_path, **given), resume=True, **trial)
    assert whole[10:] == again.trained
    assert weights == weights_hash(again.model)
    with pytest.raises(ValueError, match=r"run-4 holds no checkpoint that was written to its end"):
        train_in_a_search(searching(tmp_path, **given), 4, resume=True, planner="bisect")


def test_values_that_cannot_be_planned_with_are_refused_in_a_search(tmp_path):
    """As when they are given to the arguments, and before the first step."""
    trainer = searching(tmp_path)
    with pytest.raises(ValueError, match="planner: got 'best of all', expected one of"):
        train_in_a_search(trainer, 0, planner="best of all")
    with pytest.raises(ValueError, match="replan_steps: got 1.5, expected 0"):
        train_in_a_search(trainer, 1, planner="bisect", replan_steps=1.5)
    assert [] == trainer.trained


def test_a_curriculum_ends_at_the_planners_own_clusters_in_each_trial(tmp_path):
    """A planner that is made anew brings its own number of clusters, whatever the last trial left."""
    trainer = searching(tmp_path, cluster_schedule="curriculum", num_train_epochs=3)
    for number, clusters in enumerate((2, 4)):
        trainer.args.planner_options = {"clusters_per_batch": clusters}
        train_in_a_search(trainer, number, planner="bisect")
        assert clusters == trainer.clusters_at_end == trainer.planner.clusters_per_batch
