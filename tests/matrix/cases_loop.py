"""The loop: workers, steps, checkpoints, and searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import make_static_model
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import EarlyStoppingCallback

from matrix.case import DDP, DDP_RESUME, RESUME, SINGLE, WORKS, Case, Place, Run, not_applicable
from matrix.materials import bert, pairs
from matrix.oracles import check_plans, check_rows

WORKERS = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4}


class Peaks(SentenceEvaluator):
    """Scores highest at a step that is known beforehand."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def __call__(self, model: Any, output_path: Any = None, epoch: float = -1, steps: int = -1) -> dict[str, float]:
        return {"peak": -float(abs(steps - self.step))}


def best_at(step: int) -> dict[str, Any]:
    """Evaluations and checkpoints every third step, of which that of a known step is the best."""
    return {
        "given": lambda place, model: {"evaluator": Peaks(step)},
        "arguments": {
            "eval_strategy": "steps", "eval_steps": 3, "save_steps": 3, "load_best_model_at_end": True,
            "metric_for_best_model": "eval_peak", "greater_is_better": True,
        },
        "save_at": (15, 6),
    }  # fmt: skip


def holds_the_best(run: Run) -> None:
    """The model at the end is that of the best checkpoint, which is not the last one."""
    best = Path(run.trainer.state.best_model_checkpoint)
    assert "checkpoint-3" == best.name
    saved, after = load_file(best / "model.safetensors"), run.model[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in saved.items())
    last = load_file(
        sorted(best.parent.glob("checkpoint-?*"), key=lambda f: int(f.name[11:]))[-1] / "model.safetensors"
    )
    assert any(not torch.equal(value, after[name]) for name, value in last.items()), "nothing was to be loaded"


def stopping(place: Place, model: Any) -> dict[str, Any]:
    """Stops at the second evaluation that is no better than the first."""
    return {"evaluator": Peaks(3), "callbacks": [EarlyStoppingCallback(early_stopping_patience=2)]}


def micro_batches(run: Run) -> None:
    """Two batches a step, but for the step that takes what is left at an epoch's end."""
    for batches in run.by_rank:
        steps = [step for _, step, *_ in batches]
        several = sum(steps.count(step) == 2 for step in set(steps))
        assert several >= len(set(steps)) - 2, steps


def started(workers: int) -> Any:
    """Checks that the loader read through so many worker processes."""

    def check(run: Run) -> None:
        assert workers == run.trainer._train_dataloader.num_workers

    return check


def starts_the_epoch_anew(whole: Run, resumed: Run) -> None:
    """The steps go on, with an epoch of its own plan that is drawn from its start."""
    check_rows(resumed)
    check_plans(resumed)
    step = whole.case.save_at[whole.place.ranks > 1]
    assert step + 1 == resumed.by_rank[0][0][1]
    after = [entry for entry in whole.by_rank[0] if entry[1] > step]
    assert after != resumed.by_rank[0][: len(after)], "nothing was skipped in the other run"


def holds_only_the_model(run: Run) -> None:
    """The checkpoint can be loaded as a model, and holds neither plan nor optimizer."""
    checkpoint = run.place.folder / "whole" / f"checkpoint-{run.case.save_at[run.place.ranks > 1]}"
    names = {file.name for file in checkpoint.iterdir()}
    assert "model.safetensors" in names
    assert not {name for name in names if name.startswith(("gcbs", "optimizer", "rng_state"))}, names


def out_of_memory_once(trainer: Any, resume: str | None) -> None:
    """Trains; the first batch of a run from the start does not fit."""
    step = trainer.training_step

    def failing(*args: Any) -> Any:
        trainer.training_step = step
        trainer.plans.clear()
        trainer.verified = 0
        raise RuntimeError("CUDA out of memory.")

    if resume is None:
        trainer.training_step = failing
    trainer.train(resume_from_checkpoint=resume)


def searching(place: Place, model: Any) -> dict[str, Any]:
    """A search makes its own models."""
    return {
        "model": None, "model_init": lambda trial=None: make_static_model(), "loss": MultipleNegativesRankingLoss,
        "eval_dataset": pairs(24, seed=9),
    }  # fmt: skip


def tried(trainer: Any) -> list[str]:
    """The planner of each trial."""
    trainer.tried = []
    return trainer.tried


def search(trainer: Any, resume: str | None) -> None:
    """Two trials, of a planner each; what is recorded, and checked, is the second's."""
    from optuna.samplers import GridSampler

    names = ["bisect", "best"]
    train, models = trainer.train, []

    def keeping(*args: Any, **kwargs: Any) -> Any:
        for recorded in (trainer.trained, trainer.plans, trainer.losses):
            recorded.clear()
        trainer.verified = 0
        result = train(*args, **kwargs)
        models.append(trainer.model)
        trainer.tried.append(type(trainer.planner).__name__)
        return result

    trainer.train = keeping
    best = trainer.hyperparameter_search(
        lambda trial: {"planner": trial.suggest_categorical("planner", names)},
        n_trials=2, direction="minimize", backend="optuna", sampler=GridSampler({"planner": names}),
    )  # fmt: skip
    assert best.hyperparameters["planner"] in names
    trainer.model = models[-1]  # the host lets go of it


def a_planner_each(run: Run) -> None:
    """Both planners were tried."""
    assert {"BisectPlanner", "BestPlanner"} == set(run.watched)


CASES = [
    Case("no workers", check=started(0)),
    Case("two workers", arguments={"dataloader_num_workers": 2}, check=started(2)),
    Case("two workers, persistent, prefetching four", arguments=WORKERS, check=started(2), quick=True),
    Case(
        "gradient accumulation",
        arguments={"gradient_accumulation_steps": 2}, steps=(12, 6), save_at=(8, 4), check=micro_batches, quick=True,
    ),
    Case(
        "workers and accumulation, a model with dropout", model=bert,
        arguments={**WORKERS, "gradient_accumulation_steps": 2}, steps=(12, 6), save_at=(8, 4), check=micro_batches,
    ),
    Case("`max_steps`", arguments={"max_steps": 13}, steps=(13, 13), save_at=(12, 12)),
    Case("one and a half epochs", arguments={"num_train_epochs": 1.5}, steps=(17, 8), save_at=(14, 7)),
    Case("`dataloader_drop_last`", arguments={"dataloader_drop_last": True}),
    Case("evaluation, checkpoints, the best one at the end", check=holds_the_best, quick=True, **best_at(3)),
    Case(
        "early stopping",
        **{
            **best_at(3), "given": stopping, "steps": (9, 9), "save_at": (6, 6), "check": holds_the_best,
            "arguments": {**best_at(3)["arguments"], "restore_callback_states_from_checkpoint": True},
        },
    ),
    Case(
        "`auto_find_batch_size`",
        arguments={"auto_find_batch_size": True}, train=out_of_memory_once, planned_size=7, steps=(26, 12),
        save_at=(19, 9), quick=True,
    ),
    Case("`ignore_data_skip`", arguments={"ignore_data_skip": True}, resumed=starts_the_epoch_anew),
    Case(
        "`save_only_model`",
        arguments={"save_only_model": True}, check=holds_only_the_model,
        cells={
            SINGLE: WORKS, DDP: WORKS,
            **dict.fromkeys((RESUME, DDP_RESUME), not_applicable("such checkpoints hold nothing to resume from")),
        },
    ),
    Case(
        "hyper-parameter search (optuna)",
        given=searching, train=search, watch=tried, check=a_planner_each, arguments={"eval_strategy": "epoch"},
        needs="optuna",
        cells={
            SINGLE: WORKS, RESUME: not_applicable("the host starts each trial from its beginning"),
            **dict.fromkeys((DDP, DDP_RESUME), not_applicable("tried in one process only")),
        },
    ),
]  # fmt: skip
