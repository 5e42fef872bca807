"""One configuration in, one record of scores and seconds a run out: the same training, once for each entry of `runs`.

Runs are paired: each starts from the same weights with the same seed, the same rows and the same number of
steps, and differs in the fields of `train` that its entry names.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from transformers import set_seed
from transformers.trainer_utils import TrainOutput

from gcbs_st import losses as our_losses
from gcbs_st.arguments import GCBSTrainingArguments
from gcbs_st.checkpoint import last_whole_checkpoint
from gcbs_st.code_search import CodeSearchTask
from gcbs_st.config import ConfigError, ExperimentConfig, LossConfig, dump_config
from gcbs_st.evaluation import ScoreEvaluator, heldout_mrr
from gcbs_st.files import save_model, write_json, write_text
from gcbs_st.materials import Materials, load_materials
from gcbs_st.models import load_model, remove_training_head, use_sparse_gradients
from gcbs_st.plan_history import PLANS_FOLDER, PlanHistory
from gcbs_st.provenance import commit_of_checkout, version_of
from gcbs_st.scoring import scoring_of
from gcbs_st.static_training import few_threads, meet_texts, remembered_tokens
from gcbs_st.trainer import GCBSTrainer

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def run_experiment(config: ExperimentConfig, *, resume: bool = False) -> dict[str, Record]:
    """Returns the scores before training and of each run, and writes each run's folder.

    A run's folder, `output/NAME/`, holds `config.yaml`, `results.json`, `log_history.json`, `model/`, `plans/`
    and the host's checkpoints; `output/results.json` holds all of them. An older experiment in the same folder is replaced.

    Args:
        config: the experiment.
        resume: keep the runs that are finished and go on with one that was interrupted from its last checkpoint.

    Returns:
        "before" and each name of `runs`, each with its scores, seconds and versions.

    Raises:
        ConfigError: fields of `train` or of a run that the training arguments do not take.
        ValueError: data or models that cannot be used; the message says which and why.
        FileNotFoundError: a file or folder of the configuration that is not there.
    """
    output = Path(config.output)
    arguments = {name: training_arguments(config, name) for name in config.runs}
    materials = load_materials(config)
    # A new head is drawn at random: seeded as each run is, so that its scores are repeatable too.
    set_seed(next(iter(arguments.values())).seed)
    model = initial_model(config)
    with remembered_tokens(model, materials.tokens):
        records: dict[str, Record] = {"before": score(model, config, materials)}
        meet_texts(model, materials.train)  # now, so that the seconds of the first run do not hold it
    for name in config.runs:
        folder = output / name
        done = _finished(folder, config, name, materials) if resume else None
        if done is None:
            if not resume:
                shutil.rmtree(folder, ignore_errors=True)
            done = run(config, name, arguments[name], materials, resume=resume)
        records[name] = done
    write_json(output / "results.json", records)
    return records


def training_arguments(config: ExperimentConfig, name: str) -> GCBSTrainingArguments:
    """Returns the training arguments of one run.

    Args:
        config: the experiment.
        name: of the run.

    Returns:
        The fields of `train`, with those of the run over them.

    Raises:
        ConfigError: a field that the arguments do not have, or a value that they refuse.
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
    try:
        return GCBSTrainingArguments(
            output_dir=str(Path(config.output) / name), **{"report_to": "none", **config.train, **config.runs[name]}
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train (run {name}): {error}") from None


def run(
    config: ExperimentConfig, name: str, args: GCBSTrainingArguments, materials: Materials, *, resume: bool = False
) -> Record:
    """Returns the record of one run, after training, scoring and saving it.

    Args:
        config: the experiment.
        name: of the run.
        args: its training arguments.
        materials: the data.
        resume: go on from the run's last whole checkpoint, if it has one.

    Returns:
        What is also in the run's `results.json`.
    """
    folder = Path(config.output) / name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", _dump_run(config, name))
    set_seed(args.seed)
    model = initial_model(config)
    sparse = config.model.sparse_gradients and use_sparse_gradients(model)
    trainer = GCBSTrainer(
        model,
        args,
        training_rows(materials.train, args),
        loss=make_loss(config.loss, model),
        evaluator=dev_evaluator(config, args, materials),
        optimizer_cls_and_kwargs=(torch.optim.SparseAdam, {"lr": args.learning_rate}) if sparse else None,
    )
    trainer.add_callback(
        PlanHistory(folder / PLANS_FOLDER, lambda: trainer.planned_samplers, args.planner, args.planner_options)
    )
    checkpoint = last_whole_checkpoint(folder) if resume else None
    with remembered_tokens(model, materials.tokens):
        with few_threads(model):
            outcome = trainer.train(resume_from_checkpoint=checkpoint)
        remove_training_head(model)
        scores = score(model, config, materials)
    record = {
        **scores,
        **training_record(trainer, outcome),
        **provenance(config, name, materials),
    }
    if args.load_best_model_at_end:
        record["best_step"] = trainer.state.best_global_step
    write_json(folder / "log_history.json", trainer.state.log_history)
    save_model(model, folder / "model")
    # Written last: a folder with results is a finished run.
    write_json(folder / "results.json", record)
    return record


def training_rows(rows: Dataset, args: SentenceTransformerTrainingArguments) -> Dataset:
    """Returns the rows without their groups where a run does not ask for them: they would be trained on as text.

    Args:
        rows: of the corpus.
        args: the training arguments of a run.

    Returns:
        The rows that the trainer takes.
    """
    asked = getattr(args, "group_column", None)
    return rows if asked == "group" or "group" not in rows.column_names else rows.remove_columns("group")


def dev_evaluator(
    config: ExperimentConfig, args: GCBSTrainingArguments, materials: Materials
) -> ScoreEvaluator | None:
    """Returns what scores the model during training, by which the best checkpoint is chosen: the dev task, never a test.

    Its metric is `eval_sts_STSBenchmark-dev_spearman` for STS and `eval_code_code-dev_mrr` for code search, for
    `train.metric_for_best_model`.

    Args:
        config: the experiment.
        args: the training arguments of a run.
        materials: the data.

    Returns:
        The evaluator; None where `train.eval_strategy` asks for no evaluation.

    Raises:
        ConfigError: the dev task is not among the tasks.
    """
    if args.eval_strategy == "no":
        return None
    scoring = scoring_of(config.evaluation)
    if scoring.dev_task not in materials.tasks:
        raise ConfigError(
            f"train.eval_strategy: got {getattr(args.eval_strategy, 'value', args.eval_strategy)!r}, but "
            f"{config.evaluation.sts if scoring.name == 'STS' else scoring.name} with the splits {config.evaluation.splits} has no {scoring.dev_task}; add dev to evaluation.splits, or evaluate no steps."
        )
    task = {scoring.dev_task: materials.tasks[scoring.dev_task]}
    return scoring.evaluator(task, batch_size=config.evaluation.batch_size)


def make_loss(config: LossConfig, model: SentenceTransformer) -> torch.nn.Module:
    """Returns the loss.

    Args:
        config: its name and options.
        model: what it is the loss of.

    Returns:
        The module.

    Raises:
        ConfigError: an unknown loss or option.
    """
    loss_class = getattr(our_losses, config.name, None) or getattr(losses, config.name, None)
    if not isinstance(loss_class, type):
        names = sorted(n for n in {*dir(losses), *dir(our_losses)} if n.endswith("Loss"))
        raise ConfigError(f"loss.name: got {config.name!r}, expected one of {', '.join(names)}.")
    try:
        return loss_class(model, **config.options)
    except TypeError as error:
        raise ConfigError(f"loss.options: {error}") from None


def score(model: SentenceTransformer, config: ExperimentConfig, materials: Materials) -> Record:
    """Returns the scores of a model: those of the tasks, for STS their `avg`, and `heldout_mrr`.

    Args:
        model: any state of it.
        config: the experiment.
        materials: the data.

    Returns:
        Name of the score -> score x 100.
    """
    evaluate = scoring_of(config.evaluation).evaluate
    scores: Record = evaluate(model, materials.tasks, batch_size=config.evaluation.batch_size)
    if materials.held_out is not None:
        pairs = materials.held_out
        scores["heldout_mrr"] = heldout_mrr(
            model, list(pairs["anchor"]), list(pairs["positive"]), batch_size=config.evaluation.batch_size
        )
    return {name: round(value, 4) for name, value in scores.items()}


def initial_model(config: ExperimentConfig) -> SentenceTransformer:
    """Returns the untrained model, the same at each call.

    Args:
        config: the experiment.

    Returns:
        A new object.
    """
    options = dataclasses.asdict(config.model)
    del options["sparse_gradients"]
    return load_model(options.pop("name"), **options)


def training_record(trainer: SentenceTransformerTrainer, outcome: TrainOutput) -> Record:
    """Returns what a run's record holds of its training: steps, loss, plans and seconds.

    Args:
        trainer: that has trained; the host's makes no plans.
        outcome: what its `train` returned.

    Returns:
        The entries.
    """
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


def provenance(config: ExperimentConfig, name: str, materials: Materials) -> Record:
    """Returns what a run's record holds of where it comes from: seed, data, commit and versions.

    Args:
        config: the experiment.
        name: of the run.
        materials: the data.

    Returns:
        The entries.
    """
    packages = (
        "gcbs_st",
        "sentence-transformers",
        "transformers",
        "accelerate",
        "datasets",
        "torch",
        "numpy",
        "scipy",
    )
    return {
        "run": name,
        "seed": config.runs[name].get("seed", config.train.get("seed", 42)),
        "corpus_hash": materials.corpus_hash,
        "training_rows": len(materials.train),
        **task_record(materials),
        "commit": commit_of_checkout(),
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in packages},
    }


def task_record(materials: Materials) -> Record:
    """Returns what a run's record holds of the tasks: sizes and hashes of those that are made of installed code."""
    facts = {name: task.facts() for name, task in materials.tasks.items() if isinstance(task, CodeSearchTask)}
    return {"tasks": facts} if facts else {}


def _dump_run(config: ExperimentConfig, name: str) -> str:
    """The configuration of one run alone; `arms` are no matter of it."""
    return dump_config(dataclasses.replace(config, runs={name: config.runs[name]}, arms={}))


def _finished(folder: Path, config: ExperimentConfig, name: str, materials: Materials) -> Record | None:
    """The record of a finished run of the same configuration and data, or None."""
    try:
        record = json.loads((folder / "results.json").read_text())
        same = (folder / "config.yaml").read_text() == _dump_run(config, name)
    except (OSError, ValueError):
        return None
    data = {"corpus_hash": materials.corpus_hash, **task_record(materials)}
    return record if same and all(record.get(key) == value for key, value in data.items()) else None
