"""Runs in, their records and folders out: what is finished is read, what is not is trained and scored.

Each finished run is a folder, so that a comparison that was interrupted goes on where it was, seeds can be
added to it, and processes can share its seeds among them.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import yaml
from sentence_transformers import SentenceTransformerTrainer
from transformers import PrinterCallback, set_seed

from gcbs_st.arms import DevCurve, Run, loss_with_guide, make_arguments
from gcbs_st.baselines import HostTrainer, MinedRows, mine_negatives
from gcbs_st.config import ConfigError, ExperimentConfig, MineConfig, ModelConfig, build, dump_config
from gcbs_st.experiment import (
    Record,
    initial_model,
    provenance,
    score,
    task_record,
    training_record,
    training_rows,
)
from gcbs_st.files import save_model, write_json, write_text
from gcbs_st.materials import Materials, load_materials
from gcbs_st.models import remove_training_head, use_sparse_gradients
from gcbs_st.scoring import scoring_of
from gcbs_st.static_training import few_threads, remembered_tokens
from gcbs_st.trainer import GCBSTrainer

_PLAN_FIELDS = ("gap", "closed", "tail_coverage", "false_negatives")


def run_all(runs: Sequence[Run], runner: Runner, report: Callable[[str], None]) -> Iterator[tuple[Run, Record]]:
    """Gives each run with its record, after running it if it is not finished.

    Args:
        runs: in the order in which they are run.
        runner: that runs them.
        report: given one line for each run, with what is left.

    Yields:
        The runs in their order, each as soon as it is finished.
    """
    left = sum(runner.finished(run) is None for run in runs)
    began, trained = time.perf_counter(), 0
    for number, run in enumerate(runs, start=1):
        record = runner.finished(run)
        words = [f"[{number}/{len(runs)}]", run.arm, *run.setting, f"seed {run.seed}:"]
        if record is None:
            record = runner.run(run)
            gc.collect()  # models and trainers hold each other
            trained += 1
            minutes = (time.perf_counter() - began) / trained * (left - trained) / 60
            words.append(f"{record['seconds_total']:.0f} s, about {minutes:.0f} min left;")
        else:
            words.append("finished before;")
        words.append(
            ", ".join(
                f"{name} {record[name]:.2f}"
                for name in (runner.scoring.dev_metric, "avg", "code-test_mrr")
                if name in record
            )
        )
        report(" ".join(words))
        yield run, record


class Runner:
    """Runs what is not finished yet; the data are loaded and negatives are mined once.

    Args:
        config: the experiment.
        dev_steps: steps between dev scores; 0 for at the end only.
        dev_only: score nothing but the dev task, as a selection must.
        save_models: keep each trained model in its run's folder.

    Raises:
        ValueError: data that cannot be used.
        FileNotFoundError: data that is not there.
    """

    def __init__(
        self, config: ExperimentConfig, *, dev_steps: int = 100, dev_only: bool = False, save_models: bool = False
    ) -> None:
        splits = ["dev"] if dev_only else list(dict.fromkeys(["dev", *config.evaluation.splits]))
        config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, splits=splits))
        materials = load_materials(config)
        self.scoring = scoring_of(config.evaluation)
        dev = self.scoring.dev_task
        if dev not in materials.tasks:
            raise ValueError(
                f"evaluation: got the tasks {', '.join(materials.tasks)}, expected {dev} among them: it is what "
                "settings and the time to a score are measured on."
            )
        if dev_only:
            materials = dataclasses.replace(materials, tasks={dev: materials.tasks[dev]}, held_out=None)
        self.materials: Materials = materials
        self._task_record = task_record(materials)
        self.dev_steps = dev_steps
        self.save_models = save_models
        self._mined: dict[tuple[MineConfig, ModelConfig], MinedRows] = {}

    def finished(self, run: Run) -> Record | None:
        """Returns the record of a run that is finished with the same configuration, data and tasks, or None."""
        try:
            record: Record = json.loads((run.folder / "results.json").read_text())
            stored = (run.folder / "config.yaml").read_text()
        except (OSError, ValueError):
            return None
        same = (
            _same_run(stored, run.config)
            and record.get("corpus_hash") == self.materials.corpus_hash
            and record.get("dev_steps") == self.dev_steps
            and all(any(key == task or key.startswith(f"{task}_") for key in record) for task in self.materials.tasks)
            and all(record.get(key) == value for key, value in self._task_record.items())
            and ((run.folder / "model").is_dir() or not self.save_models)
        )
        return record if same else None

    def run(self, run: Run) -> Record:
        """Returns the record of one run after training and scoring it, and writes its folder.

        Args:
            run: what is left of it from an interrupted or another run is deleted.

        Returns:
            What is also in `results.json`, which is written last: a folder with results is a finished run.
        """
        config, arm = run.config, run.config.arms[run.arm]
        shutil.rmtree(run.folder, ignore_errors=True)
        # Before the training: the checkout may move on meanwhile.
        origin = provenance(config, f"seed-{run.seed}", self.materials)
        set_seed(run.seed)
        mined = self._mine(config, arm.mine) if arm.mine else None
        rows = mined.rows if mined else self.materials.train
        args = make_arguments(run, len(rows))
        set_seed(run.seed)
        model = initial_model(config)
        sparse = config.model.sparse_gradients and use_sparse_gradients(model)
        dev = self.materials.tasks[self.scoring.dev_task]
        curve = DevCurve(model, dev, self.dev_steps, config.evaluation.batch_size, self.scoring)
        trainer: SentenceTransformerTrainer = (HostTrainer if arm.host else GCBSTrainer)(
            model,
            args,
            training_rows(rows, args),
            loss=loss_with_guide(config.loss, model),
            callbacks=[curve],
            optimizer_cls_and_kwargs=(torch.optim.SparseAdam, {"lr": args.learning_rate}) if sparse else None,
        )
        trainer.remove_callback(PrinterCallback)
        with few_threads(model), remembered_tokens(model):
            curve.start()
            outcome = trainer.train()
            seconds = curve.seconds()
        remove_training_head(model)
        mining = mined.seconds if mined else 0.0
        record = {
            **score(model, config, self.materials),
            **training_record(trainer, outcome),
            "seconds_training": round(seconds, 2),
            "seconds_mining": round(mining, 2),
            "seconds_total": round(seconds + mining, 2),
            "seconds_dev": round(curve.seconds_scoring, 2),
            "rows_without_mined_negative": mined.filled if mined else None,
            "dev_steps": self.dev_steps,
            "dev_curve": [[step, round(at + mining, 2), value] for step, at, value in curve.points],
            "plan_log": plan_log(trainer.state.log_history),
            **origin,
            "run": run.arm,
        }
        if self.save_models:
            save_model(model, run.folder / "model")
        write_text(run.folder / "config.yaml", dump_config(config))
        write_json(run.folder / "log_history.json", trainer.state.log_history)
        write_json(run.folder / "results.json", record)
        return record

    def _mine(self, config: ExperimentConfig, options: MineConfig) -> MinedRows:
        # Of the model that this run starts from: a sweep may start from others.
        key = (options, config.model)
        if key not in self._mined:
            self._mined[key] = mine_negatives(
                self.materials.train,
                initial_model(config),
                **dataclasses.asdict(options),
                batch_size=config.evaluation.batch_size,
            )
        return self._mined[key]


def plan_log(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Returns step and quality of each plan that a trainer logged."""
    return [
        {"step": entry["step"], **{name: entry[f"gcbs/{name}"] for name in _PLAN_FIELDS}}
        for entry in history
        if "gcbs/gap" in entry
    ]


def _same_run(stored: str, config: ExperimentConfig) -> bool:
    """Whether a folder's configuration is this one: the folder may have been moved, and keys added since."""
    try:
        earlier = build(ExperimentConfig, yaml.safe_load(stored))
    except (ConfigError, yaml.YAMLError):
        return False
    return dataclasses.replace(earlier, output=config.output) == config
