"""Run folders in, what they say out: configuration, record and log. What is damaged or half-written is named.

Three kinds of folders hold runs: that of one run (`config.yaml`, `results.json`), that of an experiment
(`NAME/` a run, and `results.json` over all), and that of a comparison (`ARM/seed-K/` a run, `comparison.json`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers.trainer import TRAINER_STATE_NAME

from gcbs_st.batches.checkpoint import last_whole_checkpoint
from gcbs_st.config import ConfigError, ExperimentConfig, load_config
from gcbs_st.files import read_json

CONFIG_FILE, RESULTS_FILE, LOG_FILE = "config.yaml", "results.json", "log_history.json"
COMPARISON_FILE, MODEL_FOLDER = "comparison.json", "model"
_SEED_FOLDER = re.compile(r"seed-\d+")
# What every record has, and of which kind; scores are told by their names.
_NEEDED: dict[str, type | tuple[type, ...]] = {
    "run": str,
    "seed": int,
    "steps": int,
    "plans": int,
    "seconds_training": (int, float),
    "corpus_hash": str,
    "versions": dict,
}


@dataclass(frozen=True)
class RunRecord:
    """A finished run."""

    folder: Path  # where it lies
    experiment: Path  # the folder of the experiment or comparison that it is part of
    name: str  # of the run or arm; the runs of an arm differ in their seeds
    seed: int  # of its training
    config: Mapping[str, Any]  # its configuration, as `config.yaml` holds it
    record: Mapping[str, Any]  # scores, seconds, and where they come from, as `results.json` holds them
    # What the trainer logged, one entry per call; for runs that kept no log, what their record tells of it.
    log: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Runs:
    """What some folders hold."""

    runs: list[RunRecord]  # the finished runs, each once, in the order of the folders
    # Scores of the untrained model by experiment, where they are recorded.
    before: dict[Path, Mapping[str, Any]] = field(default_factory=dict)
    left_out: list[Path] = field(default_factory=list)  # folders inside those that were asked for that hold no run yet


def read_runs(folders: Sequence[Path]) -> Runs:
    """Returns the runs that folders hold; those of one folder by name and seed.

    Raises a ValueError that names a folder which is not there or holds no run, or a file that is damaged or missing.
    """
    found: dict[Path, RunRecord] = {}
    before: dict[Path, Mapping[str, Any]] = {}
    left_out: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is not there, expected the folder of a run or of runs, such as runs/quickstart."
            )
        inside = list(_run_folders(folder))
        if not inside:
            raise ValueError(
                f"{folder} holds no run: expected {CONFIG_FILE} in it, or in folders one or two below it."
            )
        for path in inside:
            found.setdefault(path.resolve(), read_run_record(path))
        left_out += [path for path in _empty_folders(folder) if path not in left_out]
        if not (folder / CONFIG_FILE).is_file() and (scores := _before(folder)):
            before[folder.resolve()] = scores
    return Runs(list(found.values()), before, left_out)


def read_run_record(folder: Path) -> RunRecord:
    """Returns what the folder of one run holds; raises a ValueError that names a file if it is damaged or missing."""
    config = _read_yaml(folder / CONFIG_FILE)
    results = folder / RESULTS_FILE
    if not results.is_file():
        raise ValueError(f"{results} is not there: the run has not finished. Go on with it, or leave this folder out.")
    record = read_json(results, dict)
    for key, kind in _NEEDED.items():
        if not isinstance(record.get(key), kind) or isinstance(record[key], bool):
            words = "nothing" if key not in record else str(record[key])[:60]
            raise ValueError(f"{results} is damaged: {key} is {words}, expected what a finished run writes there")
    whole = folder.resolve()
    experiment = whole.parent.parent if _SEED_FOLDER.fullmatch(whole.name) else whole.parent
    log = [*read_log(folder), *_log_of_record(results, record)]
    return RunRecord(folder, experiment, record["run"], record["seed"], config, record, log)


def read_run(folder: Path) -> tuple[ExperimentConfig, RunRecord]:
    """Returns the configuration and record of a finished run; raises a ValueError that says what is missing."""
    if not folder.is_dir():
        raise ValueError(f"--run: {folder} is not there, expected the folder of a run, such as runs/quickstart/gcbs.")
    if not (folder / CONFIG_FILE).is_file():
        runs = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f" It holds the runs {', '.join(runs)}: name one of these." if runs else ""
        raise ValueError(f"--run: {folder} holds no {CONFIG_FILE}, so it is not the folder of a run.{hint}")
    config = read_config(folder / CONFIG_FILE)
    if not (folder / RESULTS_FILE).is_file():
        raise ValueError(
            f"{folder} holds no {RESULTS_FILE}: the run has not finished. Go on with it (train_sts.py --resume), or inspect "
            f"a checkpoint of it with --checkpoint {last_whole_checkpoint(folder) or 'FOLDER'}."
        )
    return config, read_run_record(folder)


def read_config(file: Path) -> ExperimentConfig:
    """Returns the configuration in a run's `config.yaml`; raises a ValueError that names it if it is damaged."""
    try:
        return load_config(file)
    except (ConfigError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error})") from None


def run_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the training arguments of the one run that a run folder's configuration has."""
    return {**config.train, **next(iter(config.runs.values()))}


def read_log(folder: Path) -> list[Mapping[str, Any]]:
    """Returns what a run logged, one entry per call; nothing where neither the folder nor a checkpoint in it has it.

    Raises a ValueError if the file is damaged.
    """
    if (folder / LOG_FILE).is_file():
        entries = read_json(folder / LOG_FILE, list)
    else:
        checkpoint = last_whole_checkpoint(folder)
        entries = read_json(Path(checkpoint) / TRAINER_STATE_NAME, dict).get("log_history", []) if checkpoint else []
    return [entry for entry in entries if isinstance(entry, dict)]


def _run_folders(folder: Path) -> Iterator[Path]:
    """The run folders in a folder, itself among them; checkpoints and models in a run are no runs."""
    if (folder / CONFIG_FILE).is_file() or (folder / LOG_FILE).is_file():
        yield folder
        return
    for child in sorted(folder.iterdir(), key=_natural):
        if _is_run(child):
            yield child
        elif child.is_dir():
            yield from filter(_is_run, sorted(child.iterdir(), key=_natural))


def _is_run(folder: Path) -> bool:
    """Whether a folder inside another is a run's; one that lost a file is, so that it is not passed over in silence."""
    return any((folder / name).is_file() for name in (CONFIG_FILE, RESULTS_FILE, LOG_FILE))


def _natural(path: Path) -> list[Any]:
    """Sorts seed-2 before seed-10, and random before the others: it is what they are compared with."""
    parts = re.split(r"(\d+)", path.name)
    return [path.name != "random", [(int(part), "") if part.isdigit() else (-1, part) for part in parts]]


def _empty_folders(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted([*folder.glob("*/seed-*"), *folder.glob("seed-*")])
        if path.is_dir() and _SEED_FOLDER.fullmatch(path.name) and not _is_run(path)
    ]


def _before(folder: Path) -> Mapping[str, Any]:
    for name in (RESULTS_FILE, COMPARISON_FILE):
        if (folder / name).is_file():
            scores = read_json(folder / name, dict).get("before", {})
            if not isinstance(scores, dict) or not all(is_number(value) for value in scores.values()):
                raise ValueError(f"{folder / name} is damaged: before is {str(scores)[:60]}, expected scores by name")
            return scores
    return {}


def _read_yaml(file: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is not there, so this is not the whole folder of a run.") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is damaged: it holds {type(config).__name__}, expected the keys of a configuration")
    return config


def _log_of_record(file: Path, record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a comparison keeps in its records besides, or instead of, the log: dev scores and plans over the steps."""
    curve, plans = record.get("dev_curve") or [], record.get("plan_log") or []
    if not isinstance(curve, list) or not all(isinstance(point, list) and len(point) == 3 for point in curve):
        raise ValueError(f"{file} is damaged: dev_curve is not a list of step, seconds and score")
    if not isinstance(plans, list) or not all(isinstance(plan, dict) for plan in plans):
        raise ValueError(f"{file} is damaged: plan_log is not a list of plans")
    # Records of earlier versions do not say what their curve is of.
    metric = record.get("dev_metric") or ("code-dev_mrr" if "code-dev_mrr" in record else "STSBenchmark-dev")
    task = {"code-dev_mrr": "code_code-dev_mrr", "STSBenchmark-dev": "sts_STSBenchmark-dev_spearman"}.get(
        metric, metric
    )
    scores = [{"step": step, f"eval_{task}": value} for step, _, value in curve]
    return scores + [{f"gcbs/{key}" if key != "step" else key: value for key, value in plan.items()} for plan in plans]


def is_number(value: Any) -> bool:
    """Returns whether a value of a record is a number; booleans are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
