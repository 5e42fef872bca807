"""Runs in, their records and folders out: what is finished is read, what is not is trained and scored.

Each finished run is a folder, so that a comparison that was interrupted goes on where it was, seeds can be
added to it, and processes can share its seeds among them.
"""

from __future__ import annotations

import dataclasses
import gc
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from sentence_transformers import SentenceTransformerTrainer
from transformers import PrinterCallback, set_seed

from gcbs_st.config import ConfigError, ExperimentConfig, MineConfig, ModelConfig, build, dump_config
from gcbs_st.experiments.arms import DevCurve, Run, loss_with_guide, make_arguments
from gcbs_st.experiments.baselines import HostTrainer, MinedRows, mine_negatives
from gcbs_st.experiments.data import ExperimentData, load_data
from gcbs_st.experiments.tasks import STS, scoring_of
from gcbs_st.experiments.training_run import initial_model, task_facts, train_run
from gcbs_st.files import read_json, save_model, write_json, write_text
from gcbs_st.records.run_folder import CONFIG_FILE, LOG_FILE, MODEL_FOLDER, RESULTS_FILE
from gcbs_st.records.run_result import RunResult
from gcbs_st.training.trainer import GCBSTrainer

_PLAN_FIELDS = ("gap", "closed", "tail_coverage", "false_negatives")


def run_all(runs: Sequence[Run], runner: Runner, report: Callable[[str], None]) -> Iterator[tuple[Run, RunResult]]:
    """Yields each run with its record, after running it if it is not finished; `report` is given one line per run."""
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
            words.append(f"{record.seconds_total:.0f} s, about {minutes:.0f} min left;")
        else:
            words.append("finished before;")
        words.append(
            ", ".join(
                f"{name} {record.scores[name]:.2f}"
                for name in (runner.scoring.dev_metric, "avg", "retrieval_avg", "code-test_mrr")
                if name in record.scores
            )
        )
        report(" ".join(words))
        yield run, record


class Runner:
    """Runs what is not finished yet; the data are loaded and negatives are mined once.

    There are `dev_steps` steps between dev scores, 0 for at the end only. With `dev_only` nothing but STS-B dev
    and pairs that are kept back is scored, as a selection must; `save_models` keeps each trained model in its run's folder.
    """

    def __init__(
        self, config: ExperimentConfig, *, dev_steps: int = 100, dev_only: bool = False, save_models: bool = False
    ) -> None:
        splits = ["dev"] if dev_only else list(dict.fromkeys(["dev", *config.evaluation.splits]))
        config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, splits=splits))
        data = load_data(config)
        self.scoring = scoring_of(config.evaluation)
        dev = self.scoring.dev_task
        if dev not in data.tasks:
            raise ValueError(
                f"evaluation: got the tasks {', '.join(data.tasks)}, expected {dev} among them: it is what "
                "settings and the time to a score are measured on."
            )
        if dev_only:
            # Both figures that a choice may rest on: one alone has misled (docs/results.md).
            data = dataclasses.replace(
                data, tasks={name: task for name, task in data.tasks.items() if name in (dev, STS.dev_task)}
            )
        self.data: ExperimentData = data
        self.dev_steps = dev_steps
        self.save_models = save_models
        self._mined: dict[tuple[MineConfig, ModelConfig], MinedRows] = {}

    def finished(self, run: Run) -> RunResult | None:
        """Returns the result of a run that is finished with the same configuration, data and tasks, or None."""
        try:
            result = RunResult.from_json(read_json(run.folder / RESULTS_FILE, dict))
            stored = (run.folder / CONFIG_FILE).read_text()
        except (OSError, ValueError):
            return None
        same = (
            _same_run(stored, run.config)
            and (result.corpus_hash, result.dev_steps) == (self.data.corpus_hash, self.dev_steps)
            and all(any(f"{key}_".startswith(f"{task}_") for key in result.scores) for task in self.data.tasks)
            and result.tasks == task_facts(self.data)
            and ((run.folder / MODEL_FOLDER).is_dir() or not self.save_models)
        )
        return result if same else None

    def run(self, run: Run) -> RunResult:
        """Returns the result of one run after training and scoring it, and writes its folder.

        What is left there of an interrupted or another run is deleted. `results.json` is written last: a folder with
        results is a finished run.
        """
        config, arm = run.config, run.config.arms[run.arm]
        shutil.rmtree(run.folder, ignore_errors=True)
        set_seed(run.seed)
        mined = self._mine(config, arm.mine) if arm.mine else None
        rows = mined.rows if mined else self.data.train
        args = make_arguments(run, len(rows))
        curve = DevCurve(
            self.data.tasks[self.scoring.dev_task], self.dev_steps, config.evaluation.batch_size, self.scoring
        )

        def watch(trainer: SentenceTransformerTrainer) -> None:
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(curve)
            curve.start(trainer.model)

        trained = train_run(
            config,
            f"seed-{run.seed}",
            args,
            rows,
            self.data,
            trainer_class=HostTrainer if arm.host else GCBSTrainer,
            loss_of=loss_with_guide,
            prepare=watch,
        )
        seconds, history = trained.seconds - curve.seconds_scoring, trained.trainer.state.log_history
        mining = mined.seconds if mined else 0.0
        result = dataclasses.replace(
            trained.result,
            run=run.arm,
            seconds_training=round(seconds, 2),
            seconds_mining=round(mining, 2),
            seconds_total=round(seconds + mining, 2),
            seconds_dev=round(curve.seconds_scoring, 2),
            rows_without_mined_negative=mined.filled if mined else None,
            dev_steps=self.dev_steps,
            dev_metric=self.scoring.dev_metric,
            dev_curve=[[step, round(at + mining, 2), value] for step, at, value in curve.points],
            plan_log=plan_log(history),
        )
        if self.save_models:
            save_model(trained.model, run.folder / MODEL_FOLDER)
        write_text(run.folder / CONFIG_FILE, dump_config(config))
        write_json(run.folder / LOG_FILE, history)
        write_json(run.folder / RESULTS_FILE, result.to_json())
        return result

    def _mine(self, config: ExperimentConfig, options: MineConfig) -> MinedRows:
        # Of the model that this run starts from: a sweep may start from others.
        key = (options, config.model)
        if key not in self._mined:
            self._mined[key] = mine_negatives(
                self.data.train,
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
