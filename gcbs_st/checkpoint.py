"""The plan in a checkpoint: the samplers' states in, one file out, and back; nothing half-written is taken."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

PLAN_FILE = "gcbs_plan.npz"


def write_plan(folder: str | Path, states: Mapping[str, Mapping[str, Any]], fingerprint: str) -> Path:
    """Writes the plan in force under a temporary name and renames it.

    Args:
        folder: the checkpoint's.
        states: by dataset name ("" for a single dataset), what `PlannedBatchSampler.state_dict` returned.
        fingerprint: of the training set, see `gcbs_st.corpus.corpus_hash`.

    Returns:
        The file.
    """
    target = Path(folder) / PLAN_FILE
    orders = {f"order_{i}": state["order"] for i, state in enumerate(states.values())}
    described = {
        "fingerprint": fingerprint,
        "samplers": [
            {"name": name, **{k: v for k, v in state.items() if k != "order"}} for name, state in states.items()
        ],
    }
    write_arrays(target, orders, described)
    return target


def write_arrays(target: Path, arrays: Mapping[str, np.ndarray], described: Any) -> None:
    """Writes arrays and what they are under a temporary name and renames it.

    Args:
        target: the file, whose folder is made if it is not there.
        arrays: by name; "state" is taken.
        described: anything that JSON holds.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".npz.tmp")
    try:
        with temporary.open("wb") as file:
            named: Any = {"state": np.array(json.dumps(described)), **arrays}
            np.savez(file, **named)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read_plan(folder: str | Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Returns what `write_plan` wrote.

    Args:
        folder: the checkpoint's.

    Returns:
        The states by dataset name, and the fingerprint.

    Raises:
        ValueError: the file is not there or is damaged; the message says which.
    """
    file = Path(folder) / PLAN_FILE
    orders, described = read_arrays(file)
    try:
        states = {
            sampler["name"]: {**sampler, "order": orders[f"order_{i}"]}
            for i, sampler in enumerate(described["samplers"])
        }
        return states, described["fingerprint"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from None


def read_arrays(file: Path) -> tuple[dict[str, np.ndarray], Any]:
    """Returns what `write_arrays` wrote.

    Args:
        file: the file.

    Returns:
        The arrays by name, and what they are.

    Raises:
        ValueError: the file is not there or is damaged; the message says which.
    """
    if not file.is_file():
        raise ValueError(f"{file} is not there")
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return arrays, json.loads(str(arrays.pop("state")))
    # RuntimeError: a damaged byte can also read as a zip feature that Python lacks, or as encryption.
    except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from None


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """Returns the newest checkpoint that was written to its end, None if there is none.

    The host writes a checkpoint's files in place, its state last. A run that is killed while it saves
    leaves a folder without a readable state, from which it cannot resume.

    Args:
        output_dir: the run's folder.

    Returns:
        The checkpoint's folder.
    """
    pattern = re.compile(rf"{re.escape(PREFIX_CHECKPOINT_DIR)}-(\d+)")
    steps = {}
    for path in Path(output_dir).iterdir() if Path(output_dir).is_dir() else ():
        if path.is_dir() and (match := pattern.fullmatch(path.name)):
            steps[int(match.group(1))] = path
    for step in sorted(steps, reverse=True):
        try:
            json.loads((steps[step] / TRAINER_STATE_NAME).read_text())
        except (OSError, ValueError):
            logger.warning("%s was not written to its end and is passed over.", steps[step])
            continue
        return str(steps[step])
    return None
