"""Batches made of sub-batches, each of one dataset: cut where the rows are collated, so that each has its own prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader

SUB_BATCHES_KEY = "gcbs_sub_batches"


class SubBatchCollator:
    """A collator that cuts a batch into sub-batches of `size` rows and lets another collator make each of them."""

    def __init__(self, collator: Callable[[Any], Any], size: int) -> None:
        self.collator, self.size = collator, size

    def __call__(self, examples: Sequence[Any]) -> dict[str, list[Any]]:
        """Returns what the collator makes of each sub-batch, under `SUB_BATCHES_KEY`."""
        starts = range(0, len(examples), self.size)
        return {SUB_BATCHES_KEY: [self.collator(examples[start : start + self.size]) for start in starts]}


def cut_batches(loader: DataLoader[Any], size: int) -> None:
    """Makes a loader's batches consist of sub-batches of `size` rows, in place, before it is iterated."""
    collator = SubBatchCollator(loader.collate_fn, size)
    # accelerate's loader reads through one of torch's, but is itself what a resumed epoch's loader is made from.
    for one in (loader, getattr(loader, "base_dataloader", loader)):
        one.collate_fn = collator
