"""Several datasets: the batches of one step are of one dataset, or all are made of the same sub-batches.

The host deals single batches to the ranks in turn, so with two datasets on two ranks each would see one
dataset only, and losses that gather negatives across devices would mix them. Here whole steps are dealt.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from torch.utils.data import BatchSampler


class WholeSteps(BatchSampler):
    """The batches of one dataset, as many at a time as there are ranks, joined into one list of row ids.

    Batches at the end that fill no step are left out.
    """

    def __init__(self, batches: BatchSampler, ranks: int) -> None:
        self.batches, self.ranks = batches, ranks
        self.batch_size, self.drop_last = batches.batch_size * ranks, True

    def __iter__(self) -> Iterator[list[int]]:
        batches = iter(self.batches)
        while len(step := list(islice(batches, self.ranks))) == self.ranks:
            yield [row for batch in step for row in batch]

    def __len__(self) -> int:
        return len(self.batches) // self.ranks

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to the dataset's sampler."""
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(epoch)


class StepBatches(BatchSampler):
    """The batches of the steps that a multi-dataset sampler drew from `WholeSteps`, one per process and step.

    With `sub_batches` a step's batches are made of that many that were drawn one after the other: each of one dataset, the same
    on all ranks, (batch_size,) row ids of one behind those of another. Those at the end that fill no step are left out.
    """

    def __init__(self, steps: BatchSampler, batch_size: int, ranks: int, sub_batches: int = 1) -> None:
        self.steps, self.size, self.drop_last = steps, batch_size, True
        self.ranks, self.sub_batches = ranks, sub_batches
        self.batch_size = batch_size * sub_batches

    def __iter__(self) -> Iterator[list[int]]:
        steps = iter(self.steps)
        while len(drawn := list(islice(steps, self.sub_batches))) == self.sub_batches:
            for start in range(0, self.ranks * self.size, self.size):
                yield [row for step in drawn for row in step[start : start + self.size]]

    def __len__(self) -> int:
        return len(self.steps) // self.sub_batches * self.ranks

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to the sampler that mixes the datasets."""
        if hasattr(self.steps, "set_epoch"):
            self.steps.set_epoch(epoch)
