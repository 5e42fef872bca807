"""A run's folder in, what it says of the run out: configuration, record, log, and the texts that were trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from gcbs_st.checkpoint import last_whole_checkpoint
from gcbs_st.config import ConfigError, ExperimentConfig, LossConfig, load_config
from gcbs_st.files import read_json
from gcbs_st.inspection.pair_texts import PairTexts, texts_of_dataset
from gcbs_st.materials import load_rows
from gcbs_st.planners.quality import SCALE
from gcbs_st.rows.columns import text_columns
from gcbs_st.rows.training_set import corpus_hash

CONFIG_FILE, RESULTS_FILE, LOG_FILE = "config.yaml", "results.json", "log_history.json"


def read_run(folder: Path) -> tuple[ExperimentConfig, str, dict[str, Any]]:
    """Returns configuration, name and record of a finished run.

    Args:
        folder: the run's.

    Raises:
        ValueError: a folder that is no finished run's; the message says what is missing.
    """
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
    return config, run_name(config), read_json(folder / RESULTS_FILE, dict)


def read_config(file: Path) -> ExperimentConfig:
    """Returns the configuration of one run.

    Args:
        file: a run's `config.yaml`.

    Raises:
        ValueError: it is damaged; the message names it.
    """
    try:
        return load_config(file)
    except (ConfigError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error})") from None


def run_name(config: ExperimentConfig) -> str:
    """Returns the name of the run whose folder a configuration lies in.

    Args:
        config: of one run.
    """
    return next(iter(config.runs))


def run_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the training arguments that a run was given.

    Args:
        config: of one run.
    """
    return {**config.train, **config.runs[run_name(config)]}


def loss_scale(loss: LossConfig) -> float:
    """Returns a configured loss's 1 / temperature, 20 where it says nothing of it.

    Args:
        loss: of a configuration.
    """
    if isinstance(scale := loss.options.get("scale"), (int, float)) and scale > 0:
        return float(scale)
    temperature = loss.options.get("temperature")
    return 1.0 / temperature if isinstance(temperature, (int, float)) and temperature > 0 else SCALE


def read_log(folder: Path) -> list[Mapping[str, Any]]:
    """Returns what a run logged, an entry a call; nothing where neither the folder nor a checkpoint in it has it.

    Args:
        folder: the run's.

    Raises:
        ValueError: the file is damaged.
    """
    if (folder / LOG_FILE).is_file():
        entries = read_json(folder / LOG_FILE, list)
    else:
        checkpoint = last_whole_checkpoint(folder)
        entries = read_json(Path(checkpoint) / TRAINER_STATE_NAME, dict).get("log_history", []) if checkpoint else []
    return [entry for entry in entries if isinstance(entry, dict)]


def read_run_texts(folder: Path, config: ExperimentConfig, recorded: str) -> PairTexts:
    """Returns the texts that a run was trained on, read from its corpus again.

    Args:
        folder: the run's, for messages.
        config: its own.
        recorded: the hash that the corpus had then.

    Returns:
        The training rows, in the order that plans count them in.

    Raises:
        ValueError: a corpus that cannot be read, or that is another one now.
        FileNotFoundError: a corpus that is not there.
    """
    rows, _ = load_rows(config)
    settings = run_settings(config)
    # The trainer saw the rows without their groups, unless it was asked to train on them.
    trained = rows.remove_columns("group") if "group" in rows.column_names else rows
    if recorded not in (corpus_hash(rows), corpus_hash(trained)):
        raise ValueError(
            f"{folder} was trained on a corpus of hash {recorded}, but {config.corpus.source!r} is another one now "
            f"({len(rows)} rows, hash {corpus_hash(rows)}). Train again, or give the texts of then with --texts."
            if recorded
            else f"{folder}/{RESULTS_FILE} is damaged: it holds no corpus_hash."
        )
    planned = settings.get("planner_columns")
    planned = json.loads(planned) if isinstance(planned, str) else planned
    columns = text_columns(
        trained,
        prompts=settings.get("prompts"),
        router_mapping=settings.get("router_mapping"),
        names=planned if planned and len(planned) == 2 else None,  # the page is of pairs
    )
    return texts_of_dataset(trained, columns, config.corpus.source)
