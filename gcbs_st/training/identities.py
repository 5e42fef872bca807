"""What is known of the rows of a training set, for the losses that mask by it: texts, groups, listed positives.

In: the datasets as they are trained, and `RowFacts`. Out: `RowIdentities` in the losses, and the ids of each batch. It
depends on the rows alone, so no checkpoint holds anything of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from datasets import Dataset

from gcbs_st.batches.shared_values import hash_columns, hash_groups, hash_lists
from gcbs_st.losses.identity import LISTED, OWN, RowIdentities
from gcbs_st.rows.columns import text_names
from gcbs_st.rows.training_set import RowFacts
from gcbs_st.training.loss_states import find_identity_losses


class KnownRows:
    """Tells the losses of one call of `train` that mask by identity what is known of the rows, and which they see."""

    def __init__(
        self, loss: Any, parts: Mapping[str, Dataset], facts: Mapping[str, RowFacts], label_columns: Sequence[str] = ()
    ) -> None:
        """Reads what the rows of these datasets hold, in the order in which they are concatenated.

        `loss` is the trainer's, one for all datasets or a dict by name. Nothing is read if no loss asks for it.
        """
        self.losses = find_identity_losses(loss)
        asking = [name for name in parts if find_identity_losses(loss[name] if isinstance(loss, dict) else loss)]
        if not self.losses:
            return
        start, found = 0, [(np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.int64))]
        for name, dataset in parts.items():
            if name in asking:
                of_rows = read_identities(dataset, text_names(dataset, label_columns), facts.get(name, RowFacts()))
                found += [(rows + start, values, np.full(len(rows), how)) for rows, values, how in of_rows]
            start += len(dataset)
        rows, values, holds = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        identities = RowIdentities(start, rows, values, holds)
        for one in self.losses:
            one.prepare(identities)

    @contextmanager
    def telling(self, rows: np.ndarray) -> Iterator[None]:
        """Tells the losses which rows the batch holds that they see meanwhile: (B,) ids in the concatenated datasets."""
        for loss in self.losses:
            loss.set_rows(rows)
        try:
            yield
        finally:
            for loss in self.losses:
                loss.set_rows(None)

    def close(self) -> None:
        """Takes what is known of the rows from the losses."""
        for loss in self.losses:
            loss.prepare(None)


def read_identities(
    dataset: Dataset, columns: Sequence[str], facts: RowFacts
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Returns (rows, hashes, how they are held) of what the rows hold; see `RowIdentities`.

    `columns` are those of texts, in the order in which the loss sees them.
    """
    hashed = hash_columns(dataset, columns)
    held = [(*hashed[name], OWN if place < 2 else place) for place, name in enumerate(columns)]
    held.append((*hash_groups(facts.groups or ()), OWN))
    held.append((*hash_lists(facts.positives or ()), LISTED))
    return held
