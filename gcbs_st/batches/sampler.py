"""The batch sampler: an order of the rows in, lists of row ids out; it knows no model.

A callback replaces the order (`replace_tail`), also while an epoch runs: it is read lazily, so that a new tail takes
effect with the next batch that is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler

from gcbs_st.batches.shared_values import SharedValues

_PASS = 4  # purpose of the generator of a further pass over the rows; 1 to 3 are those of plans and streams


class PlannedBatchSampler(DefaultBatchSampler):
    """Draws full batches of row ids in an order that others decide; each row at most once per epoch.

    An epoch has n // B batches. The n % B rows that fill no batch are drawn at random anew in every epoch, so none is
    left out for good. `draw_an_epoch` makes it fewer batches, or several passes over the rows, each row at most once in
    a pass. Until an epoch gets a plan its order is random, by `seed` and epoch. Rows that share one of
    `shared_values` are kept apart where they are contrasted: among `contrast_size` rows, None for those of a batch.
    The host's `drop_last`, `valid_label_columns` and `generator`, which all samplers of a run share, are not used.
    Raises a ValueError for fewer rows than a batch.

        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"anchor": list("abcdefg"), "positive": list("ABCDEFG")})
        >>> sampler = PlannedBatchSampler(rows, batch_size=3, seed=1)
        >>> sampler.begin_epoch(0)
        >>> len(sampler), [len(batch) for batch in sampler]
        (2, [3, 3])
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool = True,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        shared_values: SharedValues | None = None,
        contrast_size: int | None = None,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        if len(dataset) < batch_size:
            raise ValueError(
                f"the training set has {len(dataset)} rows but a batch takes {batch_size}, and planned batches are "
                f"always full: lower per_device_train_batch_size to {len(dataset)} or less, or add rows."
            )
        self.rows = len(dataset)
        self.shared_values = shared_values
        self.contrast_size = contrast_size or batch_size
        self.pass_batches = self._batches = self.rows // self.batch_size
        self.hardness: float | None = None  # of plans, chosen at the first for all epochs; None where nobody chose
        self.begin_epoch(0)

    def __len__(self) -> int:
        return self._batches

    def draw_an_epoch(self, batches: int, step_batches: int = 1) -> None:
        """Makes every epoch `batches` batches: a part of a pass over the rows, or several passes one after the other.

        A pass has as many batches as fill whole steps of `step_batches`, so that no step holds the end of one pass and
        the beginning of the next. To be called before an epoch begins. Raises a ValueError for fewer rows than a step, and
        for batches that fill no whole steps.
        """
        whole = self.rows // self.batch_size // step_batches * step_batches
        if whole < step_batches or batches < 1 or batches % step_batches:
            raise ValueError(
                f"batches: got {batches} per epoch of {self.rows} rows, in steps of {step_batches} batches of "
                f"{self.batch_size}, expected a multiple of {step_batches}, and rows for at least one step."
            )
        self.pass_batches, self._batches = whole, batches
        self.begin_epoch(0)

    @property
    def passes(self) -> int:
        """The passes over the rows that an epoch begins."""
        return -(-len(self) // self.pass_batches)

    def batches_of_pass(self, number: int) -> range:
        """Returns the batches of an epoch that a pass holds, counted from 0; the last may be a part of a pass."""
        start = number * self.pass_batches
        return range(start, min(start + self.pass_batches, len(self)))

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the batches of the epoch from its start, reading the order only when a batch is asked for."""
        self.cursor = 0
        while self.cursor < len(self):
            start = self.cursor * self.batch_size
            self.cursor += 1
            yield self.order[start : start + self.batch_size].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the trainer's callback says which epoch it is, since the host's call may not arrive.

        After a mid-epoch resume under DDP no chain of wrappers passes the host's call on, and in other set-ups it
        arrives after the epoch was planned.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Starts an epoch, counted from 0, with a random order of randomly drawn rows."""
        self.epoch, self.plan_count, self.cursor, self.repeats = epoch, 0, 0, False
        self.cluster_size = 0  # rows of the plan in force that stay together in a batch; 0 where nobody said
        self.passes_planned = 0  # that planning was asked for, the first ones of the epoch
        self.order = np.concatenate(
            [self._draw_pass(number, len(self.batches_of_pass(number))) for number in range(self.passes)]
        )

    def _draw_pass(self, number: int, batches: int) -> np.ndarray:
        """The random order of a pass over the rows, or of its first batches."""
        order = (self.rng(_PASS, number) if number else self.rng()).permutation(self.rows)
        if self.shared_values is None:
            return order[: batches * self.batch_size]
        drawn = self.shared_values.draw(order, batches, self.batch_size)
        return self.shared_values.separate_for(drawn, self.contrast_size, self.batch_size)

    def replace_tail(self, order: np.ndarray, start: int, *, repeats: bool = False, cluster_size: int = 0) -> None:
        """Replaces what has not been drawn yet, (m,) rows behind batch `start`, by the same rows in a new order.

        With `repeats` the order may hold any rows: it is that of a planner that does not cover each row once.
        `cluster_size` is for later plans. Raises a ValueError for batches that were already drawn, or other rows than
        those behind `start`.
        """
        if start < self.cursor:
            raise ValueError(f"start: got batch {start}, but {self.cursor} batches are already drawn.")
        before = self.order[start * self.batch_size :]
        if order.shape != before.shape or not (repeats or np.array_equal(np.sort(order), np.sort(before))):
            raise ValueError(f"order: {len(order)} rows that are not the {len(before)} rows behind batch {start}.")
        self.order[start * self.batch_size :] = order
        self.plan_count += 1
        self.repeats |= repeats
        self.cluster_size = cluster_size

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs to draw the same batches in this epoch."""
        fields = (
            "epoch", "plan_count", "repeats", "batch_size", "rows", "seed", "cluster_size", "pass_batches",
            "passes_planned", "hardness",
        )  # fmt: skip
        return {"order": self.order.copy(), **{field: getattr(self, field) for field in fields}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the order of an interrupted epoch; drawing starts at the epoch's first batch again.

        Raises a ValueError if the state is of another number of rows, batch size or seed, incomplete or damaged.
        """
        # Checkpoints of before there were such.
        state = {"cluster_size": 0, "pass_batches": self.pass_batches, "passes_planned": 1, "hardness": None, **state}
        for key in self.state_dict():
            if key not in state:
                raise ValueError(f"it has no {key}")
        for key in ("rows", "batch_size", "seed", "pass_batches"):
            if int(state[key]) != getattr(self, key):
                raise ValueError(f"its {key} is {int(state[key])}, but this run has {getattr(self, key)}")
        order = np.asarray(state["order"])
        if order.shape != self.order.shape or not np.issubdtype(order.dtype, np.integer):
            raise ValueError(
                f"its order is {order.dtype} of shape {order.shape}, expected int64 of {self.order.shape}"
            )
        passes = np.split(order, range(0, len(order), self.pass_batches * self.batch_size))
        twice = not state["repeats"] and any(len(np.unique(rows)) != len(rows) for rows in passes)
        if twice or order.min() < 0 or order.max() >= self.rows:
            raise ValueError(f"its order holds a row twice or a row outside 0..{self.rows - 1}")
        self.order = order.astype(np.int64)
        self.epoch, self.plan_count, self.cursor = int(state["epoch"]), int(state["plan_count"]), 0
        self.repeats, self.cluster_size = bool(state["repeats"]), int(state["cluster_size"])
        self.passes_planned = int(state["passes_planned"])
        self.hardness = None if state["hardness"] is None else float(state["hardness"])

    def rng(self, *purpose: int) -> np.random.Generator:
        """Returns a fresh generator that depends on the seed, the epoch and the purpose alone, not on the rank."""
        return np.random.default_rng([self.seed, self.epoch, *purpose])
