"""Row ids that travel with the batches: the loader's dataset hands them to the collator beside the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

ROWS_KEY = "gcbs_rows"


class NumberedRows(Dataset):  # type: ignore[type-arg]
    """A map-style dataset that returns a batch of rows together with their ids."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: list[int]) -> tuple[list[int], Any]:
        """Returns the ids and the rows, which are read as torch's own loader reads them."""
        read_many = getattr(self.dataset, "__getitems__", None)
        return rows, read_many(rows) if read_many else [self.dataset[row] for row in rows]


class NumberedCollator:
    """A collator that puts the ids of the rows beside what another collator makes of them."""

    def __init__(self, collator: Callable[[Any], Any]) -> None:
        self.collator = collator

    def __call__(self, numbered: tuple[list[int], Any]) -> Any:
        """Returns the batch; without ids if it is no dict."""
        rows, examples = numbered
        batch = self.collator(examples)
        if isinstance(batch, dict):
            # An array, not a tensor: it is never moved to the device.
            batch[ROWS_KEY] = np.asarray(rows, dtype=np.int64)
        return batch


def number_rows(loader: DataLoader[Any]) -> None:
    """Makes a loader's batches carry the ids of their rows under `ROWS_KEY`, in place, before it is iterated."""
    dataset, collator = NumberedRows(loader.dataset), NumberedCollator(loader.collate_fn)
    # accelerate's loader reads through one of torch's, but is itself what a resumed epoch's loader is made from.
    for one in (loader, getattr(loader, "base_dataloader", loader)):
        # torch refuses to replace the dataset of a loader, lest its sampler does not fit; ours has the same rows.
        vars(one)["dataset"] = dataset
        one.collate_fn = collator


def locate(row_ids: np.ndarray, row_counts: Mapping[str, int]) -> tuple[str, np.ndarray]:
    """Returns the dataset that a batch is of, and the (B,) ids of its rows in it.

    `row_ids` are those in the concatenated datasets, of which `row_counts` are the lengths, in their order.

    >>> locate(np.array([7, 5]), {"first": 5, "second": 4})
    ('second', array([2, 0]))
    """
    starts = np.cumsum([0, *row_counts.values()])
    index = int(np.searchsorted(starts, row_ids[0], side="right")) - 1
    return list(row_counts)[index], row_ids - starts[index]
