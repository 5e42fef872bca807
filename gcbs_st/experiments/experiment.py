"""One configuration in, one record of scores and seconds a run out: the same training, once for each entry of `runs`.

Runs are paired: each starts from the same weights with the same seed, the same rows and the same number of
steps, and differs in the fields of `train` that its entry names.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from transformers import set_seed

from gcbs_st.batches.checkpoint import last_whole_checkpoint
from gcbs_st.batches.plan_history import PLANS_FOLDER, PlanHistory
from gcbs_st.config import ExperimentConfig, dump_config
from gcbs_st.experiments.data import ExperimentData, load_data
from gcbs_st.experiments.training_run import (
    dev_evaluator,
    initial_model,
    score,
    task_facts,
    train_run,
    training_arguments,
)
from gcbs_st.files import read_json, save_model, write_json, write_text
from gcbs_st.models.static import meet_texts, remembered_tokens
from gcbs_st.planners import name_of
from gcbs_st.records.run_folder import CONFIG_FILE, LOG_FILE, MODEL_FOLDER, RESULTS_FILE
from gcbs_st.records.run_result import RunResult
from gcbs_st.training.arguments import GCBSTrainingArguments


def run_experiment(config: ExperimentConfig, *, resume: bool = False) -> dict[str, dict[str, Any]]:
    """Returns the scores before training and the results of each run by name, and writes each run's folder.

    A run's folder, `output/NAME/`, holds `config.yaml`, `results.json`, `log_history.json`, `model/`, `plans/` and the
    host's checkpoints; `output/results.json` holds all of them. An older experiment in the same folder is replaced,
    unless `resume` keeps the runs that are finished and goes on with an interrupted one from its last checkpoint.
    Raises a ConfigError, ValueError or FileNotFoundError that says what of the configuration, the data or the model
    cannot be used.
    """
    output = Path(config.output)
    arguments = {name: training_arguments(config, name) for name in config.runs}
    data = load_data(config)
    # A new head is drawn at random: seeded as each run is, so that its scores are repeatable too.
    set_seed(next(iter(arguments.values())).seed)
    model = initial_model(config)
    with remembered_tokens(model, data.tokens):
        records: dict[str, dict[str, Any]] = {"before": score(model, config, data)}
        meet_texts(model, data.train)  # now, so that the seconds of the first run do not hold it
    for name in config.runs:
        folder = output / name
        done = _finished(folder, config, name, data) if resume else None
        if done is None:
            if not resume:
                shutil.rmtree(folder, ignore_errors=True)
            done = run(config, name, arguments[name], data, resume=resume)
        records[name] = done.to_json()
    write_json(output / RESULTS_FILE, records)
    return records


def run(
    config: ExperimentConfig, name: str, args: GCBSTrainingArguments, data: ExperimentData, *, resume: bool = False
) -> RunResult:
    """Returns the result of one run, after training, scoring and saving it."""
    folder = Path(config.output) / name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG_FILE, _dump_run(config, name))

    def keep_plans(trainer: Any) -> None:
        plans = folder / PLANS_FOLDER
        trainer.add_callback(
            PlanHistory(plans, lambda: trainer.planned_samplers, name_of(trainer.planner), args.planner_options)
        )

    trained = train_run(
        config,
        name,
        args,
        data.train,
        data,
        evaluator=dev_evaluator(config, args, data),
        prepare=keep_plans,
        tokens=data.tokens,
        checkpoint=last_whole_checkpoint(folder) if resume else None,
    )
    write_json(folder / LOG_FILE, trained.trainer.state.log_history)
    save_model(trained.model, folder / MODEL_FOLDER)
    # Written last: a folder with results is a finished run.
    write_json(folder / RESULTS_FILE, trained.result.to_json())
    return trained.result


def _dump_run(config: ExperimentConfig, name: str) -> str:
    """The configuration of one run alone; `arms` are no matter of it."""
    return dump_config(dataclasses.replace(config, runs={name: config.runs[name]}, arms={}))


def _finished(folder: Path, config: ExperimentConfig, name: str, data: ExperimentData) -> RunResult | None:
    """The result of a finished run of the same configuration and data, or None."""
    try:
        result = RunResult.from_json(read_json(folder / RESULTS_FILE, dict))
        same = (folder / CONFIG_FILE).read_text() == _dump_run(config, name)
    except (OSError, ValueError):
        return None
    facts = (result.corpus_hash, result.tasks)
    return result if same and facts == (data.corpus_hash, task_facts(data)) else None
