"""The plans of a run, one file each, written as they come into force, so that one can see which rows trained together.

Random batches are kept too, to compare a run without plans with one that has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerState

from gcbs_st.batches.sampler import PlannedBatchSampler
from gcbs_st.files import read_arrays, write_arrays

PLANS_FOLDER = "plans"
# Of a run that plans more often than this every second plan is dropped, as often as it takes: a plan of a million
# rows is 4 MB, and nobody looks at thousands of them.
KEPT_PLANS = 32
_NAME = re.compile(r"step-(\d{8,})\.npz")
_FIELDS = {"epoch": int, "plan_count": int, "batch_size": int, "rows": int, "repeats": bool}


@dataclass(frozen=True)
class StoredPlan:
    """One dataset's batches from some step on."""

    step: int  # optimizer steps taken before its first batch
    epoch: int  # counted from 0
    plan_count: int  # plans made in this epoch until then; 0 for batches that are random because none was due
    order: np.ndarray  # (m,) int64 rows of the epoch, m a multiple of `batch_size`; blocks are batches
    batch_size: int  # rows per batch, on each process
    rows: int  # of the dataset
    repeats: bool  # rows may recur in other batches
    # Batches of the epoch that were drawn before, from earlier plans, and keep their place; 0 in a checkpoint, which
    # does not say.
    drawn: int = 0
    planner: str = ""  # its name, "" where it is not recorded
    options: Mapping[str, Any] | None = None  # of the planner


class PlanHistory(TrainerCallback):
    """Writes each plan into a folder when it comes into force. To be added after the callback that plans.

    `samplers` returns the samplers by name of their dataset, "" for a single one; a planner that is no name is called
    by its type.
    """

    def __init__(
        self,
        folder: Path,
        samplers: Callable[[], Mapping[str, PlannedBatchSampler]],
        planner: Any,
        options: Any = None,
    ) -> None:
        self.folder, self.samplers = folder, samplers
        self.planner = planner if isinstance(planner, str) else type(planner).__name__
        self.options = dict(options or {})
        self._written: dict[str, tuple[int, int]] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Deletes what an earlier run in the same folder planned after the step that this one starts from."""
        self._written = {}
        if state.is_world_process_zero:
            for file in plan_files(self.folder):
                if step_of(file) > state.global_step or state.global_step == 0:
                    file.unlink(missing_ok=True)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Keeps the order that the epoch starts with."""
        self._keep(args, state)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Keeps the order that was made in mid-epoch, if one was."""
        self._keep(args, state)

    def _keep(self, args: Any, state: TrainerState) -> None:
        samplers = self.samplers()
        made = {name: (sampler.epoch, sampler.plan_count) for name, sampler in samplers.items()}
        if made == self._written or not state.is_world_process_zero:
            return
        self._written = made
        files = plan_files(self.folder)
        # A resumed run starts with the plan of its checkpoint, which the interrupted run has kept.
        if files and _same(files[-1], samplers):
            return
        cooldown = args.cooldown_start(state.max_steps)
        cooled = cooldown is not None and state.global_step >= cooldown
        orders, described = {}, []
        for i, (name, sampler) in enumerate(samplers.items()):
            fields = {field: kind(getattr(sampler, field)) for field, kind in _FIELDS.items()}
            described.append({"name": name, "drawn": sampler.cursor, **fields})
            # In half the bytes, wherever the ids fit.
            orders[f"order_{i}"] = sampler.order.astype(np.uint32 if sampler.rows < 2**32 else np.int64)
        planner, options = ("random", {}) if cooled else (self.planner, self.options)
        facts = {"step": state.global_step, "planner": planner, "options": options, "samplers": described}
        write_arrays(self.folder / f"step-{state.global_step:08d}.npz", orders, facts)
        if len(files := plan_files(self.folder)) > KEPT_PLANS:
            # The first and the newest one stay.
            for file in files[1:-1:2]:
                file.unlink()


def plan_files(folder: Path) -> list[Path]:
    """Returns the files of a run's folder `plans` by step; none where there is no such folder."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted((file for file in files if _NAME.fullmatch(file.name)), key=step_of)


def step_of(file: Path) -> int:
    """Returns the step in the name of one of `plan_files`."""
    match = _NAME.fullmatch(file.name)
    assert match is not None
    return int(match.group(1))


def read_stored_plan(file: Path) -> dict[str, StoredPlan]:
    """Returns the plan of each dataset from a file of `PlanHistory`, "" for a single one.

    Raises a ValueError that names the file if it is missing, damaged, or holds no order of its rows.
    """
    orders, described = read_arrays(file)
    try:
        common = {"step": int(described["step"]), "planner": described["planner"], "options": described["options"]}
        states = {
            entry["name"]: {**entry, "order": orders[f"order_{i}"]} for i, entry in enumerate(described["samplers"])
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from None
    return {name: stored_plan(state, file, **common) for name, state in states.items()}


def stored_plan(state: Mapping[str, Any], file: Path, **facts: Any) -> StoredPlan:
    """Returns a sampler's state as a plan; raises a ValueError that names the file if it is no order of its rows.

    `state` holds "order" and the fields of `StoredPlan`, `facts` are "step", "planner" and "options".
    """
    try:
        fields: dict[str, Any] = {field: kind(state[field]) for field, kind in _FIELDS.items()}
        fields["drawn"] = int(state.get("drawn", 0))
        order, rows, batch_size = np.asarray(state["order"]), fields["rows"], fields["batch_size"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from None
    whole = order.ndim == 1 and np.issubdtype(order.dtype, np.integer) and batch_size > 0
    if not whole or len(order) == 0 or len(order) % batch_size:
        got = f"{order.dtype} of shape {order.shape}"
        raise ValueError(f"{file} is damaged: its order is {got}, expected whole batches of {batch_size} rows.")
    if order.min() < 0 or order.max() >= rows or not (fields["repeats"] or len(np.unique(order)) == len(order)):
        raise ValueError(f"{file} is damaged: its order holds a row twice or a row outside 0..{rows - 1}.")
    return StoredPlan(order=order.astype(np.int64), **fields, **facts)


def _same(file: Path, samplers: Mapping[str, PlannedBatchSampler]) -> bool:
    """Returns whether a file holds the samplers' plans; a damaged one does not, and is written again."""
    try:
        stored = read_stored_plan(file)
    except ValueError:
        return False
    return list(stored) == list(samplers) and all(
        plan.epoch == sampler.epoch and np.array_equal(plan.order, sampler.order)
        for plan, sampler in zip(stored.values(), samplers.values(), strict=True)
    )
