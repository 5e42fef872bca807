"""Which rows of the training set must not share a batch, and what is said where they cannot be kept apart.

In: a dataset, its groups and listed positives, and its loss. Out: what its rows share, for samplers and planners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from gcbs_st.batches.sampler import PlannedBatchSampler
from gcbs_st.batches.shared_values import SharedValues
from gcbs_st.rows.columns import text_names
from gcbs_st.rows.training_set import RowFacts
from gcbs_st.training.loss_facts import masks_by_identity


class RowsApart:
    """The rows that a trainer keeps apart, by dataset."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        # By dataset, which rows are no negatives of each other, for planners and measures.
        self.contradicting: dict[str, SharedValues] = {}

    def shared_values(self, name: str, dataset: Dataset, labels: list[str]) -> SharedValues | None:
        """Returns what rows that must not share a batch have in common, None where all may meet.

        Notes which rows are no negatives of each other, too. A loss that masks by identity needs no rows apart. Only
        no_duplicates may then ask for it, and of texts alone. Of a negative that is another row's positive such a loss
        masks that text, and the rows stay negatives.
        """
        names, facts = text_names(dataset, labels), self._facts(name)
        known: dict[str, Any] = {"groups": facts.groups, "positives": facts.positives}
        strict = self._trainer.args.no_duplicates
        if not masks_by_identity(self._trainer.loss_of(name)):
            shared = self.contradicting[name] = SharedValues.from_dataset(dataset, names, strict=strict, **known)
            return shared or None
        self.contradicting[name] = SharedValues.from_dataset(dataset, names[:2], **known)
        return (SharedValues.from_dataset(dataset, names, strict=True) or None) if strict else None

    def report_clashes(self, name: str, sampler: PlannedBatchSampler, texts: Sequence[str]) -> None:
        """Warns where rows cannot be kept apart, in an epoch's first and still random order.

        Raises a ValueError where no_duplicates asks for it and it cannot be had.
        """
        shared = sampler.shared_values
        if shared is None:
            return
        of = f" {name!r}" if name else ""
        if self._trainer.args.no_duplicates and (found := shared.clashes(sampler.order, sampler.batch_size)):
            raise ValueError(
                f"batch_sampler=no_duplicates: {self._name_shared(name, shared, found.row, texts)} stands in {found.holders} of "
                f"the {found.rows} rows of the training set{of}, but an epoch has only {found.batches} full batches of "
                f"{sampler.batch_size}, each of which may hold it once. De-duplicate the training set, lower "
                "per_device_train_batch_size, or leave batch_sampler at its default, which keeps equal texts apart as "
                "far as possible."
            )
        size = self._trainer.contrast_size(name)
        if found := shared.clashes(sampler.order, size):
            self._trainer.warn_once(
                f"clashes of {name}",
                "%.1f %% of the rows of the training set%s share a text or group with another row that they are "
                "contrasted with: %s stands in %d of %d rows, and an epoch has %d batches of %d. They are kept apart as "
                "far as possible, and trained. De-duplicate the rows, or lower per_device_train_batch_size.",
                100 * found.share,
                of,
                self._name_shared(name, shared, found.row, texts),
                found.holders,
                found.rows,
                found.batches,
                size,
            )

    def _facts(self, name: str) -> RowFacts:
        return self._trainer.facts.get(name, RowFacts())

    def _name_shared(self, name: str, shared: SharedValues, row: int, texts: Sequence[str]) -> str:
        """What a row shares with others, for a message."""
        values, facts = self._trainer.training_parts()[name][row], self._facts(name)
        group = None if facts.groups is None else facts.groups[row]
        listed = () if facts.positives is None else facts.positives[row]
        kind, value = shared.name_widest(row, [*(values.get(text) for text in texts), *listed], group)
        return f"the {kind} {str(value)!r:.120}"
