"""The batch sampler: an order of the rows in, lists of B row ids out; it knows no model.

A callback gives it an order (`replace_tail`), also while an epoch runs: the order is read lazily, so a
new tail takes effect with the next batch that is drawn.
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
    """Hands out full batches of row ids in an order that others decide; each row at most once an epoch.

    An epoch has n // B batches. The n % B rows that fill no batch are drawn at random anew in every
    epoch, so none is left out for good. Until an epoch is given a plan its order is random.

    Example:
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
        """Takes what the host gives to every batch sampler.

        Args:
            dataset: n rows, map-style.
            batch_size: rows a batch, B.
            drop_last: not used; every batch is full.
            valid_label_columns: kept for the host.
            generator: kept for the host, never drawn from: all samplers of a run share it.
            seed: of the random orders, together with the epoch.
            shared_values: what rows should not share where they are contrasted, or None to let them.
            contrast_size: rows that are contrasted with one another; None for the rows of a batch.

        Raises:
            ValueError: fewer rows than a batch.
        """
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        if len(dataset) < batch_size:
            raise ValueError(
                f"the training set has {len(dataset)} rows but a batch takes {batch_size}, and planned batches are "
                f"always full: lower per_device_train_batch_size to {len(dataset)} or less, or add rows."
            )
        self.rows = len(dataset)
        self.shared_values = shared_values
        self.contrast_size = contrast_size or batch_size
        self.epoch = 0
        self.plan_count = 0
        self.cursor = 0
        self.repeats = False
        self.order = self._random_order(0)

    def __len__(self) -> int:
        """The number of batches of an epoch; the same in every epoch."""
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the batches of the epoch from its start, reading the order only when a batch is asked for."""
        self.cursor = 0
        while self.cursor < len(self):
            start = self.cursor * self.batch_size
            self.cursor += 1
            yield self.order[start : start + self.batch_size].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: which epoch it is comes from the trainer's callback, since the host's call may not arrive.

        After a mid-epoch resume under DDP no chain of wrappers passes the host's call on, and in other
        set-ups it arrives after the epoch was planned.

        Args:
            epoch: not used.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Starts an epoch with a random order of randomly drawn rows.

        Args:
            epoch: counted from 0.
        """
        self.epoch, self.plan_count, self.cursor, self.repeats = epoch, 0, 0, False
        self.order = self._random_order(epoch)

    def replace_tail(self, order: np.ndarray, start: int, *, repeats: bool = False) -> None:
        """Replaces what has not been drawn yet.

        Args:
            order: (m,) the same rows that stand behind batch `start` now, in their new order.
            start: batches that keep their place; at least `cursor`.
            repeats: the order is that of a planner that does not cover each row once, so it holds any rows.

        Raises:
            ValueError: batches that were already drawn, or other rows than those that stood there.
        """
        if start < self.cursor:
            raise ValueError(f"start: got batch {start}, but {self.cursor} batches are already drawn.")
        before = self.order[start * self.batch_size :]
        if order.shape != before.shape or not (repeats or np.array_equal(np.sort(order), np.sort(before))):
            raise ValueError(f"order: {len(order)} rows that are not the {len(before)} rows behind batch {start}.")
        self.order[start * self.batch_size :] = order
        self.plan_count += 1
        self.repeats |= repeats

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs to draw the same batches in this epoch."""
        return {
            "order": self.order.copy(),
            "epoch": self.epoch,
            "plan_count": self.plan_count,
            "repeats": self.repeats,
            "batch_size": self.batch_size,
            "rows": self.rows,
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the order of an interrupted epoch; drawing starts at the epoch's first batch again.

        Args:
            state: what `state_dict` returned, of a sampler over the same rows.

        Raises:
            ValueError: a state of another number of rows, batch size or seed, or that is incomplete or damaged.
        """
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
        if (
            (not state["repeats"] and len(np.unique(order)) != len(order))
            or order.min() < 0
            or order.max() >= self.rows
        ):
            raise ValueError(f"its order holds a row twice or a row outside 0..{self.rows - 1}")
        self.order = order.astype(np.int64)
        self.epoch, self.plan_count, self.cursor = int(state["epoch"]), int(state["plan_count"]), 0
        self.repeats = bool(state["repeats"])

    def rng(self, *purpose: int) -> np.random.Generator:
        """Returns a generator that depends on the seed, the epoch and the purpose alone.

        Args:
            purpose: non-negative numbers that tell one use from another.

        Returns:
            A fresh generator, the same on every rank and in every resumed run.
        """
        return np.random.default_rng([self.seed, self.epoch, *purpose])

    def _random_order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.rows)
        if self.shared_values is None:
            return order[: len(self) * self.batch_size]
        drawn = self.shared_values.draw(order, len(self), self.batch_size)
        return self.shared_values.separate_for(drawn, self.contrast_size, self.batch_size)
