"""Several datasets in the shares that somebody gave them: which dataset each step of an epoch is of.

In: a batch sampler and a weight for each dataset. Out: lists of row ids in the concatenated datasets. An epoch has as many
steps as all datasets have together, so that weights move steps from one dataset to another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

from gcbs_st.batches.sampler import PlannedBatchSampler
from gcbs_st.batches.steps import WholeSteps

_ORDER = 5  # purpose of the generator that orders an epoch's steps
_FAR = 2**20  # more epochs than any run has: the seeds of a sampler's further passes are those of no epoch


EXPECTED = (
    "a number of 0 or more, the power of the datasets' steps, or a mapping of dataset name to a weight of 0 or more, not "
    "all of them 0"
)


def are_weights(given: Any) -> bool:
    """Returns whether something is what `shares_of` takes; which datasets there are is not looked at.

    >>> are_weights(0.5), are_weights({"a": 1, "b": 0}), are_weights({"a": 0}), are_weights(-1), are_weights(True)
    (True, True, False, False, False)
    """
    weights = list(given.values()) if isinstance(given, Mapping) else [given]
    numbers = [one for one in weights if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if len(numbers) < len(weights) or not all(math.isfinite(one) and one >= 0 for one in numbers):
        return False
    return any(numbers) if isinstance(given, Mapping) else True


def shares_of(weights: float | Mapping[str, float], steps: Mapping[str, int]) -> np.ndarray:
    """Returns the share of an epoch's steps that each dataset is to have: (k,) floats in [0, 1] that sum to 1.

    `steps` holds the whole steps of one pass over each dataset, by name. Of a number a the shares are proportional to
    steps ** a: 1 gives each its own steps, 0 all the same, in between small datasets gain (a temperature T in the sense
    of multilingual BERT is a = 1 / T). Otherwise they are proportional to the weights by name. Raises a ValueError for a
    dataset without a whole step, unless its weight is 0.

    >>> shares_of(0.5, {"small": 10, "large": 90}).round(2).tolist()
    [0.25, 0.75]
    >>> shares_of({"small": 3, "large": 1}, {"small": 10, "large": 90}).tolist()
    [0.75, 0.25]
    """
    drawn = [name for name in steps if not isinstance(weights, Mapping) or weights[name] > 0]
    if short := [name for name in drawn if steps[name] == 0]:
        raise ValueError(
            f"dataset_weights: got a share for {short[0]!r}, whose rows do not fill the batches of one step. Add rows, lower "
            "per_device_train_batch_size, or give weights by name and 0 to this dataset."
        )
    if isinstance(weights, Mapping):
        given = np.array([weights[name] for name in steps], float)
        given /= given.max()  # lest the sum be infinite
    else:
        counts = np.array(list(steps.values()), float)
        given = (counts / counts.max()) ** weights
    # However little it is, it is not nothing.
    given = np.where([name in drawn for name in steps], np.maximum(given, np.finfo(float).tiny), 0.0)
    shares: np.ndarray = given / given.sum()
    return shares


def whole_steps_of(shares: np.ndarray, steps: int) -> np.ndarray:
    """Returns (k,) int64, how many of an epoch's steps each dataset has: its share to within a step, but at least one.

    Largest remainders are rounded up until all steps are given away. Where shares are so small that datasets would have no
    step, those with the most give them theirs. Raises a ValueError if there are fewer steps than datasets with a share.
    """
    wanted = int((shares > 0).sum())
    if steps < wanted:
        raise ValueError(f"steps: got {steps} an epoch for {wanted} datasets, expected at least one for each.")
    exact = np.round(shares * steps, 9)  # 5.9999999 of a share that is a fraction of these very steps
    counts = np.floor(exact).astype(np.int64)
    late = np.argsort(counts - exact, kind="stable")[: steps - counts.sum()]
    counts[late] += 1
    for index in np.flatnonzero((shares > 0) & (counts == 0)):
        counts[counts.argmax()] -= 1
        counts[index] = 1
    return counts


class WeightedBatches(BatchSampler):
    """The batches of several datasets, as many of each as its share of the epoch's steps; in random order.

    The order depends on seed and epoch alone. A dataset whose share is larger than one pass over its rows starts over, in
    another order; of one whose share is smaller other rows are drawn in each epoch.
    """

    def __init__(
        self,
        row_counts: Sequence[int],
        samplers: Sequence[BatchSampler],
        shares: np.ndarray,
        seed: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """Takes one sampler for each dataset: of row ids in it, or the `WholeSteps` of such a sampler.

        `row_counts` are the datasets' lengths, (k,) `shares` sum to 1. `generator` is the one that the host's samplers draw
        from. Raises a ValueError if there are fewer steps than datasets with a share.
        """
        super().__init__(range(sum(row_counts)), samplers[0].batch_size, drop_last=True)
        self.starts = [0, *itertools.accumulate(row_counts)]
        self.samplers, self.seed, self.generator = list(samplers), seed, generator
        self.counts = whole_steps_of(shares, sum(map(len, samplers)))
        for sampler, count in zip(samplers, self.counts.tolist(), strict=True):
            planned, ranks = (sampler.batches, sampler.ranks) if isinstance(sampler, WholeSteps) else (sampler, 1)
            if isinstance(planned, PlannedBatchSampler) and count:
                planned.draw_an_epoch(count * ranks, ranks)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Draws the order of an epoch's steps, counted from 0."""
        self.epoch = epoch
        rng = np.random.default_rng([self.seed, epoch, _ORDER])
        self.sequence = rng.permutation(np.repeat(np.arange(len(self.counts)), self.counts))

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the trainer's callback says which epoch it is, since the host's call may not arrive."""

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the epoch's batches from its start."""
        if self.generator is not None:
            self.generator.manual_seed(self.seed + self.epoch)
        drawn = [self._without_end(sampler) for sampler in self.samplers]
        for index in self.sequence.tolist():
            yield [row + self.starts[index] for row in next(drawn[index])]

    def __len__(self) -> int:
        return len(self.sequence)

    def shares_until(self, step: int) -> np.ndarray:
        """Returns the share of the epoch's first steps, `step` of them and at least one, that each dataset had: (k,)."""
        counted = np.bincount(self.sequence[: max(1, step)], minlength=len(self.counts))
        shares: np.ndarray = counted / counted.sum()
        return shares

    def _without_end(self, sampler: BatchSampler) -> Iterator[list[int]]:
        """The batches of one dataset's sampler, which is iterated again at its end; ours has passes of its own."""
        for number in itertools.count():
            # Some of the host's draw by seed and epoch, and would repeat themselves.
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self.epoch + number * _FAR)
            count = 0
            for batch in sampler:
                count += 1
                yield batch
            if not count:
                raise RuntimeError(
                    f"{type(sampler).__name__} has {len(sampler)} batches by its length, but yields none."
                )
