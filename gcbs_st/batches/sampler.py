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


class PlannedBatchSampler(DefaultBatchSampler):
    """Draws full batches of row ids in an order that others decide; each row at most once per epoch.

    An epoch has n // B batches. The n % B rows that fill no batch are drawn at random anew in every epoch, so none is
    left out for good. Until an epoch gets a plan its order is random, by `seed` and epoch. Rows that share one of
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
        self.begin_epoch(0)

    def __len__(self) -> int:
        return self.rows // self.batch_size

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
        order = self.rng().permutation(self.rows)
        if self.shared_values is None:
            self.order = order[: len(self) * self.batch_size]
        else:
            drawn = self.shared_values.draw(order, len(self), self.batch_size)
            self.order = self.shared_values.separate_for(drawn, self.contrast_size, self.batch_size)

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
        fields = ("epoch", "plan_count", "repeats", "batch_size", "rows", "seed", "cluster_size")
        return {"order": self.order.copy(), **{field: getattr(self, field) for field in fields}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the order of an interrupted epoch; drawing starts at the epoch's first batch again.

        Raises a ValueError if the state is of another number of rows, batch size or seed, incomplete or damaged.
        """
        state = {"cluster_size": 0, **state}  # checkpoints of before there was one
        for key in self.state_dict():
            if key not in state:
                raise ValueError(f"it has no {key}")
        for key in ("rows", "batch_size", "seed"):
            if int(state[key]) != getattr(self, key):
                raise ValueError(f"its {key} is {int(state[key])}, but this run has {getattr(self, key)}")
        order = np.asarray(state["order"])
        if order.shape != self.order.shape or not np.issubdtype(order.dtype, np.integer):
            raise ValueError(
                f"its order is {order.dtype} of shape {order.shape}, expected int64 of {self.order.shape}"
            )
        twice = not state["repeats"] and len(np.unique(order)) != len(order)
        if twice or order.min() < 0 or order.max() >= self.rows:
            raise ValueError(f"its order holds a row twice or a row outside 0..{self.rows - 1}")
        self.order = order.astype(np.int64)
        self.epoch, self.plan_count, self.cursor = int(state["epoch"]), int(state["plan_count"]), 0
        self.repeats, self.cluster_size = bool(state["repeats"]), int(state["cluster_size"])

    def rng(self, *purpose: int) -> np.random.Generator:
        """Returns a fresh generator that depends on the seed, the epoch and the purpose alone, not on the rank."""
        return np.random.default_rng([self.seed, self.epoch, *purpose])
