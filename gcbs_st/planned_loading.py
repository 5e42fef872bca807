"""The host's training loader, over samplers of ours: one for each dataset, whose order is planned.

In: the training set as the host keeps it. Out: batches of row ids, and who drew how many of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader

from gcbs_st.arguments import PlanningArguments
from gcbs_st.corpus import require_map_style
from gcbs_st.duplicates import SharedValues
from gcbs_st.planning import refuse_unsupported, take_groups
from gcbs_st.sampler import PlannedBatchSampler
from gcbs_st.step_sampler import StepBatches, WholeSteps

# Beside any of the host's trainers; which one is for the concrete classes to say.
if TYPE_CHECKING:
    from sentence_transformers.base.trainer import BaseTrainer as _Host
else:
    _Host = object


class PlannedLoading(_Host):
    """What a trainer of the host's loads its training rows with, so that somebody can say which of them meet."""

    args: PlanningArguments

    def __init__(
        self, model: Any = None, args: Any = None, train_dataset: Any = None, *rest: Any, **kwargs: Any
    ) -> None:
        """Takes the host's arguments, by position or name.

        Args:
            model: as in the host.
            args: with the fields of `PlanningArguments`.
            train_dataset: see `PlannedTraining`.
            rest: the host's further arguments, in its order.
            kwargs: the host's further arguments, by name.
        """
        self.planned_samplers: dict[str, PlannedBatchSampler] = {}
        self._building_train_loader = False
        self._mixer: BatchSampler | None = None
        self._groups: dict[str, list[Any]] = {}
        if args is not None and args.group_column is not None:
            train_dataset, self._groups = take_groups(train_dataset, args.group_column)
        super().__init__(model, args, train_dataset, *rest, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the host's loader over samplers of ours.

        Only this loader's batches are planned: the same dataset may also be the one that is evaluated.
        """
        refuse_unsupported(self)
        self.planned_samplers, self._mixer = {}, None
        self._building_train_loader = True
        try:
            loader = super().get_train_dataloader()
        finally:
            self._building_train_loader = False
        # Each start of its workers draws their seed, by default from the global numbers that dropout draws from
        # too. Persistent workers start once in a run, but again in a resumed one, whose dropout would then differ.
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def get_batch_sampler(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> BatchSampler | None:
        """Returns our sampler for the rows that are trained on, and the host's for those that are evaluated.

        Args:
            dataset: one of the datasets.
            batch_size: rows a batch.
            drop_last: for the host's samplers.
            valid_label_columns: names of columns that are not text.
            generator: for the host's samplers.
            seed: for the host's samplers; ours takes it from the arguments, since not every host passes it.

        Returns:
            The sampler.
        """
        name = self._name_of(dataset)
        if name is None:
            return super().get_batch_sampler(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        require_map_style(dataset)
        labels = valid_label_columns or []
        sampler = PlannedBatchSampler(
            dataset,
            # The host halves only this one when it runs out of memory, and builds its loader from the other.
            self._train_batch_size if self.args.auto_find_batch_size else batch_size,
            drop_last,
            valid_label_columns,
            generator,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            shared_values=self._shared_values(name, dataset, labels),
        )
        self.planned_samplers[name] = sampler
        return sampler

    def get_multi_dataset_batch_sampler(
        self,
        dataset: ConcatDataset[Any],
        batch_samplers: list[BatchSampler],
        generator: torch.Generator | None = None,
        seed: int | None = 0,
    ) -> BatchSampler:
        """Returns the host's sampler; on several processes the batches of one training step are of one dataset.

        Args:
            dataset: the datasets one after the other.
            batch_samplers: of each of them.
            generator: the host's.
            seed: the host's.
        """
        ranks = self.args.world_size
        if not self._building_train_loader:
            return super().get_multi_dataset_batch_sampler(dataset, batch_samplers, generator, seed)
        if ranks == 1:
            self._mixer = super().get_multi_dataset_batch_sampler(dataset, batch_samplers, generator, seed)
        else:
            whole: list[BatchSampler] = [WholeSteps(batches, ranks) for batches in batch_samplers]
            steps = super().get_multi_dataset_batch_sampler(dataset, whole, generator, seed)
            self._mixer = StepBatches(steps, batch_samplers[0].batch_size, ranks)
        return self._mixer

    def _mix_for_epoch(self, epoch: int) -> None:
        """Tells the sampler that mixes several datasets the epoch; the host's own call may not arrive in a resumed run."""
        if self._mixer is not None and hasattr(self._mixer, "set_epoch"):
            self._mixer.set_epoch(epoch)

    def _shared_values(self, name: str, dataset: Dataset, labels: list[str]) -> SharedValues | None:
        groups = self._groups.get(name)
        if not self.args.no_duplicates and groups is None:
            return None
        return SharedValues.from_dataset(dataset, labels, texts=self.args.no_duplicates, groups=groups)

    def _name_of(self, dataset: Dataset) -> str | None:
        """The training set's name within its DatasetDict, "" if it is the only one, None if it is not trained on."""
        if not self._building_train_loader:
            return None
        if isinstance(self.train_dataset, DatasetDict):
            # The same rows may stand under two names, with a loss each.
            new = (name for name in self.train_dataset if name not in self.planned_samplers)
            return next((name for name in new if self.train_dataset[name] is dataset), None)
        return "" if dataset is self.train_dataset else None

    def _steps_an_epoch(self) -> int:
        batches: int = sum(len(sampler) // self.args.world_size for sampler in self.planned_samplers.values())
        return max(1, -(-batches // self.args.gradient_accumulation_steps))
