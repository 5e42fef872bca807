"""Ids of rows that travel with the batches: the loader's dataset hands them to the collator beside the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

ROWS_KEY = "gcbs_rows"


class NumberedRows(Dataset):  # type: ignore[type-arg]
    """A map-style dataset that hands out a batch of rows together with their ids."""

    def __init__(self, dataset: Any) -> None:
        """Takes the dataset, or a concatenation of several.

        Args:
            dataset: with a length, read by row id.
        """
        self.dataset = dataset

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.dataset)

    def __getitems__(self, rows: list[int]) -> tuple[list[int], Any]:
        """Returns the ids and the rows, which are read as torch's own loader reads them.

        Args:
            rows: ids of a batch.
        """
        read_many = getattr(self.dataset, "__getitems__", None)
        return rows, read_many(rows) if read_many else [self.dataset[row] for row in rows]


class NumberedCollator:
    """A collator that puts the ids of the rows beside what another collator makes of them."""

    def __init__(self, collator: Callable[[Any], Any]) -> None:
        """Takes the collator.

        Args:
            collator: makes a batch of a list of rows.
        """
        self.collator = collator

    def __call__(self, numbered: tuple[list[int], Any]) -> Any:
        """Returns the batch; without ids if it is no mapping.

        Args:
            numbered: what `NumberedRows` hands out.
        """
        rows, examples = numbered
        batch = self.collator(examples)
        if isinstance(batch, dict):
            # An array, not a tensor: it is never moved to the device.
            batch[ROWS_KEY] = np.asarray(rows, dtype=np.int64)
        return batch


def number_rows(loader: DataLoader[Any]) -> None:
    """Makes a loader's batches carry the ids of their rows under `ROWS_KEY`, in place.

    Args:
        loader: that has not been iterated yet.
    """
    dataset, collator = NumberedRows(loader.dataset), NumberedCollator(loader.collate_fn)
    # accelerate's loader reads through one of torch's, but is itself what a resumed epoch's loader is made from.
    for one in (loader, getattr(loader, "base_dataloader", loader)):
        # torch refuses to replace the dataset of a loader, lest its sampler does not fit; ours has the same rows.
        vars(one)["dataset"] = dataset
        one.collate_fn = collator


def find_dataset(starts: np.ndarray, rows: np.ndarray) -> int:
    """Returns which of several concatenated datasets the rows of a batch are of; a batch is of one.

    Args:
        starts: (k + 1,) ids at which the datasets start, and the number of all rows.
        rows: (b,) ids in the concatenation, at least one.
    """
    return int(np.searchsorted(starts, rows[0], side="right")) - 1
