"""Several datasets on several processes: the batches of one step are of one dataset.

The host deals single batches to the processes in turn, so with two datasets on two processes each would see one
dataset only, and losses that gather negatives across devices would mix them. Here whole steps are dealt.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from torch.utils.data import BatchSampler


class WholeSteps(BatchSampler):
    """The batches of one dataset, as many at a time as there are processes, joined into one list of row ids.

    Batches at the end that fill no step are left out.
    """

    def __init__(self, batches: BatchSampler, processes: int) -> None:
        """Takes the batches.

        Args:
            batches: of one dataset, all of `batches.batch_size` rows.
            processes: of the run.
        """
        self.batches, self.processes = batches, processes
        self.batch_size, self.drop_last = batches.batch_size * processes, True

    def __iter__(self) -> Iterator[list[int]]:
        """Gives one list of `processes` batches a step."""
        batches = iter(self.batches)
        while len(step := list(islice(batches, self.processes))) == self.processes:
            yield [row for batch in step for row in batch]

    def __len__(self) -> int:
        return len(self.batches) // self.processes


class StepBatches(BatchSampler):
    """The batches of steps that a multi-dataset sampler of the host's, or of the user's, drew from `WholeSteps`."""

    def __init__(self, steps: BatchSampler, batch_size: int, processes: int) -> None:
        """Takes the steps.

        Args:
            steps: lists of `processes` times `batch_size` row ids.
            batch_size: rows a batch.
            processes: of the run.
        """
        self.steps, self.batch_size, self.drop_last, self.processes = steps, batch_size, True, processes

    def __iter__(self) -> Iterator[list[int]]:
        """Gives one batch for each process, then those of the next step."""
        for step in self.steps:
            for start in range(0, len(step), self.batch_size):
                yield step[start : start + self.batch_size]

    def __len__(self) -> int:
        return len(self.steps) * self.processes

    def set_epoch(self, epoch: int) -> None:
        """Hands the epoch on to the sampler that mixes the datasets.

        Args:
            epoch: counted from 0.
        """
        if hasattr(self.steps, "set_epoch"):
            self.steps.set_epoch(epoch)
