"""What one training is: a configuration in, a trained model and what is recorded of it out.

`experiment` trains the runs of a configuration and `runner` the arms of a comparison; both call `train_run`.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from transformers import set_seed
from transformers.trainer_utils import TrainOutput

from gcbs_st import losses as our_losses
from gcbs_st.config import ConfigError, ExperimentConfig, LossConfig
from gcbs_st.evaluation.code_search import CodeSearchTask
from gcbs_st.evaluation.evaluator import ScoreEvaluator
from gcbs_st.evaluation.ranking import heldout_mrr
from gcbs_st.experiments.data import ExperimentData
from gcbs_st.experiments.precision import warn_of_slow_bfloat16
from gcbs_st.experiments.tasks import evaluate_tasks, scoring_of
from gcbs_st.models.load import load_model, remove_training_head, use_sparse_gradients
from gcbs_st.models.static import few_threads, remembered_tokens
from gcbs_st.records.provenance import commit_of_checkout, version_of
from gcbs_st.records.run_result import RunResult
from gcbs_st.training.arguments import GCBSTrainingArguments
from gcbs_st.training.trainer import GCBSTrainer

MakeLoss = Callable[[LossConfig, SentenceTransformer], torch.nn.Module]
_PACKAGES = ("gcbs_st", "sentence-transformers", "transformers", "accelerate", "datasets", "torch", "numpy", "scipy")


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A training that has ended."""

    model: SentenceTransformer  # trained, without the head that only training needs
    trainer: SentenceTransformerTrainer  # that trained it
    seconds: float  # that the training took
    result: RunResult


def train_run(  # noqa: PLR0913 - the two engines differ in these
    config: ExperimentConfig,
    name: str,
    args: SentenceTransformerTrainingArguments,
    rows: Dataset,
    data: ExperimentData,
    *,
    trainer_class: type[SentenceTransformerTrainer] = GCBSTrainer,
    loss_of: MakeLoss | None = None,
    evaluator: ScoreEvaluator | None = None,
    prepare: Callable[[SentenceTransformerTrainer], Any] = lambda trainer: None,
    tokens: dict[str, np.ndarray] | None = None,
    checkpoint: str | None = None,
) -> TrainedRun:
    """Trains and scores the model of a configuration; the same for the same arguments.

    `rows` are trained on, `data` is what the model is scored on. `trainer_class` is the host's for a baseline,
    `loss_of` makes another loss of the model than `make_loss`, `evaluator` scores during training, `prepare` is given
    the trainer just before it trains, to add callbacks, `tokens` are those that static models have met (see
    `remembered_tokens`), and `checkpoint` is resumed from.
    """
    origin = provenance(config, name, data)  # now: the checkout may move on while the run trains
    warn_of_slow_bfloat16(args, config.evaluation)
    set_seed(args.seed)
    model = initial_model(config)
    sparse = config.model.sparse_gradients and use_sparse_gradients(model)
    trainer = trainer_class(
        model,
        args,
        training_rows(rows, args),
        loss=(loss_of or make_loss)(config.loss, model),
        evaluator=evaluator,
        optimizer_cls_and_kwargs=(torch.optim.SparseAdam, {"lr": args.learning_rate}) if sparse else None,
    )
    prepare(trainer)
    with remembered_tokens(model, tokens):
        began = time.perf_counter()
        with few_threads(model):
            outcome = trainer.train(resume_from_checkpoint=checkpoint)
        seconds = time.perf_counter() - began
        remove_training_head(model)
        scores = score(model, config, data)
    best = trainer.state.best_global_step if args.load_best_model_at_end else None
    result = RunResult(scores=scores, **training_facts(trainer, outcome), **origin, best_step=best)
    return TrainedRun(model, trainer, seconds, result)


def training_arguments(config: ExperimentConfig, name: str) -> GCBSTrainingArguments:
    """Returns the training arguments of one run: the fields of `train`, with those of the run over them.

    Raises a ConfigError for a field that the arguments do not have, or a value that they refuse.
    """
    known = {entry.name for entry in dataclasses.fields(GCBSTrainingArguments) if entry.init}
    for path, block in (("train", config.train), (f"runs.{name}", config.runs[name])):
        for key in block:
            if key not in known or key == "output_dir":
                raise ConfigError(f"{path}.{key}: unknown key; expected a field of GCBSTrainingArguments.")
    if config.model.sparse_gradients and {**config.train, **config.runs[name]}.get("max_grad_norm", 1) != 0:
        raise ConfigError(
            "train.max_grad_norm: set it to 0; the sparse gradients of model.sparse_gradients cannot be clipped."
        )
    given = {"report_to": "none", **config.train, **config.runs[name]}
    for key in ("planner_view", "planner_reference"):
        if key in given:
            given[key] = _with_packaged_models(given[key])
    try:
        return GCBSTrainingArguments(output_dir=str(Path(config.output) / name), **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train (run {name}): {error}") from None


def _with_packaged_models(view: Any) -> Any:
    """A view of the training arguments, with `package:NAME`, which they do not know, as the model that it stands for."""
    if isinstance(view, (list, tuple)):
        return [_with_packaged_models(one) for one in view]
    return _packaged_model(view) if isinstance(view, str) and view.startswith("package:") else view


@functools.cache
def _packaged_model(name: str) -> SentenceTransformer:
    return load_model(name)


def training_rows(rows: Dataset, args: SentenceTransformerTrainingArguments) -> Dataset:
    """Returns the rows without their groups where a run does not ask for them: they would be trained on as text."""
    asked = getattr(args, "group_column", None)
    return rows if asked == "group" or "group" not in rows.column_names else rows.remove_columns("group")


def dev_evaluator(
    config: ExperimentConfig, args: GCBSTrainingArguments, data: ExperimentData
) -> ScoreEvaluator | None:
    """Returns what scores the model during training, to choose the best checkpoint: the dev task, never a test.

    Its metric is `eval_sts_STSBenchmark-dev_spearman` for STS, `eval_heldout_mrr` for held-out pairs and
    `eval_code_code-dev_mrr` for code search, for `train.metric_for_best_model`. None where `train.eval_strategy` asks for no evaluation. Raises a ConfigError if the
    dev task is not among the tasks.
    """
    if args.eval_strategy == "no":
        return None
    if config.evaluation.bf16:
        raise ConfigError(
            "evaluation.bf16: scores whole runs; checkpoints are scored in float32. Drop it, or train.eval_strategy."
        )
    scoring = scoring_of(config.evaluation)
    if scoring.dev_task not in data.tasks:
        raise ConfigError(
            f"train.eval_strategy: got {getattr(args.eval_strategy, 'value', args.eval_strategy)!r}, but "
            f"{config.evaluation.sts if scoring.name == 'STS' else scoring.name} with the splits {config.evaluation.splits} has no {scoring.dev_task}; add dev to evaluation.splits, or evaluate no steps."
        )
    task = {scoring.dev_task: data.tasks[scoring.dev_task]}
    return scoring.evaluator(task, batch_size=config.evaluation.batch_size)


def make_loss(config: LossConfig, model: SentenceTransformer) -> torch.nn.Module:
    """Returns the loss; raises a ConfigError for an unknown loss or option."""
    loss_class = getattr(our_losses, config.name, None) or getattr(losses, config.name, None)
    if not isinstance(loss_class, type):
        names = sorted(n for n in {*dir(losses), *dir(our_losses)} if n.endswith("Loss"))
        raise ConfigError(f"loss.name: got {config.name!r}, expected one of {', '.join(names)}.")
    try:
        return loss_class(model, **config.options)
    except TypeError as error:
        raise ConfigError(f"loss.options: {error}") from None


def score(model: SentenceTransformer, config: ExperimentConfig, data: ExperimentData) -> dict[str, float]:
    """Returns the scores x 100 of a model by name: those of the tasks, for STS their `avg`, and `heldout_mrr`."""
    size = config.evaluation.batch_size
    with torch.autocast(model.device.type, torch.bfloat16, enabled=config.evaluation.bf16):
        scores = evaluate_tasks(model, data.tasks, batch_size=size)
        if data.held_out is not None:
            anchors, positives = (list(data.held_out[name]) for name in ("anchor", "positive"))
            scores["heldout_mrr"] = heldout_mrr(model, anchors, positives, batch_size=size)
    return {name: round(value, 4) for name, value in scores.items()}


def initial_model(config: ExperimentConfig) -> SentenceTransformer:
    """Returns the untrained model, the same at each call."""
    options = dataclasses.asdict(config.model)
    del options["sparse_gradients"]
    return load_model(options.pop("name"), **options)


def training_facts(trainer: SentenceTransformerTrainer, outcome: TrainOutput) -> dict[str, Any]:
    """Returns what a `RunResult` holds of its training: steps, loss, plans and seconds."""
    plans = [entry for entry in trainer.state.log_history if "gcbs/plan_seconds" in entry]
    return {
        "steps": outcome.global_step,
        "train_loss": round(outcome.training_loss, 4),
        # Of each plan as it was made, averaged; random batches close nothing by definition.
        "gap_closed": round(sum(entry["gcbs/closed"] for entry in plans) / len(plans), 4) if plans else 0.0,
        "plans": len(plans),
        "seconds_training": round(outcome.metrics["train_runtime"], 2),
        "seconds_embedding": round(sum(entry["gcbs/embed_seconds"] for entry in plans), 2),
        "seconds_planning": round(sum(entry["gcbs/plan_seconds"] for entry in plans), 2),
    }


def provenance(config: ExperimentConfig, name: str, data: ExperimentData) -> dict[str, Any]:
    """Returns what a `RunResult` holds of where it comes from: seed, data, commit and versions."""
    return {
        "run": name,
        "seed": config.runs[name].get("seed", config.train.get("seed", 42)),
        "corpus_hash": data.corpus_hash,
        "training_rows": len(data.train),
        "tasks": task_facts(data),
        "commit": commit_of_checkout(),
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in _PACKAGES},
    }


def task_facts(data: ExperimentData) -> dict[str, Any] | None:
    """Returns the sizes and hashes of the tasks that are made of installed code, None where there are none."""
    return {name: task.facts() for name, task in data.tasks.items() if isinstance(task, CodeSearchTask)} or None
