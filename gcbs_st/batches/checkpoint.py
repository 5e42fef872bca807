"""The plan in a checkpoint: the samplers' states in one file, which is whole or not there."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gcbs_st.files import read_arrays, write_arrays

logger = logging.getLogger(__name__)

PLAN_FILE, STREAM_FILE = "gcbs_plan.npz", "gcbs_stream.npz"


def write_plan(folder: str | Path, states: Mapping[str, Mapping[str, Any]], fingerprint: str) -> Path:
    """Writes the states of the samplers, by dataset name ("" for a single one), into a checkpoint; returns the file.

    `fingerprint` is that of the training set, see `gcbs_st.rows.training_set.fingerprint`.
    """
    target = Path(folder) / PLAN_FILE
    orders = {f"order_{i}": state["order"] for i, state in enumerate(states.values())}
    samplers = [{"name": name, **{k: v for k, v in state.items() if k != "order"}} for name, state in states.items()]
    write_arrays(target, orders, {"fingerprint": fingerprint, "samplers": samplers})
    return target


def read_plan(folder: str | Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Returns the states by dataset name and the fingerprint that `write_plan` was given.

    Raises a ValueError that says whether the file is missing or damaged.
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


def write_stream(folder: str | Path, orders: Sequence[np.ndarray], described: Mapping[str, Any]) -> Path:
    """Writes where in a stream a checkpoint was made, and the orders of windows whose rows are not all trained."""
    target = Path(folder) / STREAM_FILE
    write_arrays(target, {f"order_{i}": order for i, order in enumerate(orders)}, dict(described))
    return target


def read_stream(folder: str | Path) -> dict[str, Any]:
    """Returns what `write_stream` was given, the orders under "orders".

    Raises a ValueError that says whether the file is missing or damaged.
    """
    file = Path(folder) / STREAM_FILE
    orders, described = read_arrays(file)
    try:
        return {**described, "orders": [orders[f"order_{i}"] for i in range(len(described["windows"]))]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from None


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """Returns the newest checkpoint of a run's folder that was written to its end, None if there is none.

    The host writes a checkpoint's files in place, its state last. A run that is killed while it saves leaves a folder
    without a readable state, from which it cannot resume.
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
