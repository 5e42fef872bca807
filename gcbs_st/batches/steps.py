"""Several datasets on several ranks: the batches of one step are of one dataset.

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


class StepBatches(BatchSampler):
    """The batches of the steps that a multi-dataset sampler drew from `WholeSteps`, one per process and step."""

    def __init__(self, steps: BatchSampler, batch_size: int, ranks: int) -> None:
        self.steps, self.batch_size, self.drop_last, self.ranks = steps, batch_size, True, ranks

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            for start in range(0, len(step), self.batch_size):
                yield step[start : start + self.batch_size]

    def __len__(self) -> int:
        return len(self.steps) * self.ranks

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to the sampler that mixes the datasets."""
        if hasattr(self.steps, "set_epoch"):
            self.steps.set_epoch(epoch)
