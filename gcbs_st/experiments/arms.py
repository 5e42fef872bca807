"""A configuration and names of arms in, the runs of a comparison out: what each arm trains with, and when it is scored.

An arm is a way of training: a planner, a loss, a baseline. For one seed all arms start from the same weights
and take the same number of steps over the same rows with the same seed, so that they can be compared in pairs.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gcbs_st.config import ArmConfig, ConfigError, ExperimentConfig, LossConfig, override
from gcbs_st.experiments.baselines import freeze, with_transformers_tokenizers
from gcbs_st.experiments.tasks import STS, Scoring
from gcbs_st.experiments.training_run import make_loss, training_arguments
from gcbs_st.models.load import load_model
from gcbs_st.planners import available
from gcbs_st.training.arguments import GCBSTrainingArguments


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a comparison."""

    arm: str  # name of the arm
    seed: int  # of the training
    setting: tuple[str, ...]  # overrides of a sweep, empty in a comparison
    config: ExperimentConfig  # of this run alone, as its folder's `config.yaml` holds it

    @property
    def folder(self) -> Path:
        """Where its record is."""
        return Path(self.config.output) / f"seed-{self.seed}"


def find_arm(config: ExperimentConfig, name: str) -> ArmConfig:
    """Returns an arm by its name; raises a ConfigError if there is none."""
    if name in config.arms:
        return config.arms[name]
    if name in config.runs:
        return ArmConfig(train=config.runs[name])
    if name in available():
        return ArmConfig(train={"planner": name})
    raise ConfigError(
        f"arm: got {name!r}, expected an entry of arms ({', '.join(config.arms) or 'none'}) or of runs "
        f"({', '.join(config.runs)}), or a planner ({', '.join(available())})."
    )


def plan_runs(
    config: ExperimentConfig,
    arms: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    settings: Sequence[tuple[str, ...]] = ((),),
    fewer: Mapping[str, int] | None = None,
) -> list[Run]:
    """Returns a run for each seed, setting and arm, all arms of a seed before the next seed.

    The runs of one seed differ in nothing but arm and setting, which are overrides such as `train.learning_rate=0.001`
    that win over what an arm says. An arm of `fewer` has only that many of the seeds, the first. Raises a ConfigError for an unknown arm, a field that it cannot have, a repeated
    arm or seed, or none.
    """
    for what, values in (("arms", arms), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{what}: got {list(values)}, expected one or more, each once.")
    runs = []
    for seed, setting, name in itertools.product(seeds, settings, arms):
        arm = find_arm(config, name)
        if seed not in seeds[: (fewer or {}).get(name, len(seeds))]:
            continue
        resolved = dataclasses.replace(
            config,
            output=str(out.joinpath(name, *([",".join(setting).replace("/", "_")] if setting else []))),
            train={**config.train, **arm.train, "seed": seed},
            loss=arm.loss or config.loss,
            runs={f"seed-{seed}": {}},
            arms={name: arm},
        )
        runs.append(Run(name, seed, setting, override(resolved, setting)))
    for run in runs:
        make_arguments(run, rows=None)
    return runs


def make_arguments(run: Run, rows: int | None) -> SentenceTransformerTrainingArguments:
    """Returns the training arguments of a run, the host's for an arm that the host trains.

    `rows` None only checks them. The number of steps is explicit, so that an arm with an incomplete last batch, or
    without, takes as many as every other. Raises a ConfigError for a field that the arguments do not have, or a value
    that they refuse.
    """
    arm, train = run.config.arms[run.arm], dict(run.config.train)
    # Nothing is resumed within a run, nothing is looked at while it runs but the curve of dev scores.
    train |= {"save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True}
    config = dataclasses.replace(run.config, train=train)
    if not arm.host:
        args: Any = training_arguments(config, f"seed-{run.seed}")
    else:
        names = {field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments)}
        ours = {field.name for field in dataclasses.fields(GCBSTrainingArguments)} - names
        for key in arm.train:
            if key in ours:
                raise ConfigError(
                    f"arms.{run.arm}.train.{key}: a field of ours, but host: true trains without them. Drop one of both."
                )
        # For its checks of the keys, which are the same; the host has batch samplers that planning replaces.
        checked = {key: value for key, value in train.items() if key != "batch_sampler"}
        training_arguments(dataclasses.replace(config, train=checked), f"seed-{run.seed}")
        train = {key: value for key, value in train.items() if key not in ours}
        args = SentenceTransformerTrainingArguments(
            output_dir=str(run.folder), **{"report_to": "none", "dataloader_drop_last": True, **train}
        )
    if rows is not None and args.max_steps <= 0:
        batches = rows // args.per_device_train_batch_size
        args.max_steps = math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))
    return args


def loss_with_guide(config: LossConfig, model: SentenceTransformer) -> torch.nn.Module:
    """Returns the loss; its option `guide` names a model, or is `initial`: a frozen copy of the one to be trained."""
    name = config.options.get("guide")
    if not isinstance(name, str):
        return make_loss(config, model)
    guide = freeze(copy.deepcopy(model) if name == "initial" else load_model(name).to(model.device))
    with with_transformers_tokenizers(model, guide):
        return make_loss(LossConfig(config.name, {**config.options, "guide": guide}), model)


class DevCurve(TrainerCallback):
    """Scores the dev task every `every` steps, on a clock that stands still meanwhile.

    Args:
        task: what the model is scored on, of the kind that `scoring` scores.
        every: steps; 0 for at the end only.
        batch_size: texts per forward pass.
        scoring: how it is scored.
    """

    def __init__(self, task: Any, every: int, batch_size: int, scoring: Scoring = STS) -> None:
        self.points: list[tuple[int, float, float]] = []
        self.seconds_scoring = 0.0
        self._model: Any = None
        self._task, self._every, self._batch_size = task, every, batch_size
        self._scoring = scoring
        self._began = time.perf_counter()

    def start(self, model: SentenceTransformer) -> None:
        """Starts the clock of the training of a model."""
        self._model = model
        self._began = time.perf_counter()

    def seconds(self) -> float:
        """Returns the seconds since the start, without those of scoring."""
        return time.perf_counter() - self._began - self.seconds_scoring

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Scores where it is due, and at the last step."""
        step = state.global_step
        if not (step == state.max_steps or (self._every and step % self._every == 0)):
            return
        seconds, began = self.seconds(), time.perf_counter()
        # Scoring leaves modes and random numbers as they were: the training does not notice.
        value = self._scoring.dev_score(self._model, self._task, self._batch_size)
        self.points.append((step, round(seconds, 2), round(value, 4)))
        self.seconds_scoring += time.perf_counter() - began
