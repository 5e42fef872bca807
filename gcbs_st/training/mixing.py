"""Several datasets in one training: which of them each step is of, and how a batch is made of sub-batches.

In: a batch sampler for each dataset. Out: the batch sampler of the training loader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, ConcatDataset

from gcbs_st.batches.sampler import PlannedBatchSampler
from gcbs_st.batches.steps import StepBatches, WholeSteps
from gcbs_st.batches.weighted import WeightedBatches, shares_of
from gcbs_st.rows.training_set import parts_of
from gcbs_st.training.arguments import PlanningArguments

# Beside any of the host's trainers; which one is for the concrete classes to say.
if TYPE_CHECKING:
    from sentence_transformers.base.trainer import BaseTrainer as _Host
else:
    _Host = object


class DatasetMixing(_Host):
    """Mixes the batches of several datasets, by weights or as the host does."""

    args: PlanningArguments
    planned_samplers: dict[str, PlannedBatchSampler]
    builds_train_loader: bool
    _mixer: BatchSampler | None = None
    _weighted: WeightedBatches | None = None  # of the mixer

    def forget_mix(self) -> None:
        """Forgets what mixed the batches of a former loader."""
        self._mixer = self._weighted = None

    @property
    def mixes(self) -> bool:
        """Whether the batches of several datasets are mixed here, and not by the host alone."""
        return self._mixer is not None

    def get_multi_dataset_batch_sampler(
        self,
        dataset: ConcatDataset[Any],
        batch_samplers: list[BatchSampler],
        generator: torch.Generator | None = None,
        seed: int | None = 0,
    ) -> BatchSampler:
        """Returns the host's sampler, or one by weights; on several ranks the batches of one step are of one dataset.

        With sub-batches all ranks' batches are of the same datasets, too.
        """
        ranks, weights, parts = self.args.world_size, self.args.dataset_weights, self.args.sub_batches
        ours = bool(self.planned_samplers) or weights is not None or parts > 1
        if not self.builds_train_loader or not ours:
            return super().get_multi_dataset_batch_sampler(dataset, batch_samplers, generator, seed)
        self._refuse_short_sub_batches(batch_samplers)
        whole: list[BatchSampler] = list(batch_samplers)
        if ranks > 1:
            whole = [WholeSteps(batches, ranks) for batches in batch_samplers]
        if weights is None:
            steps = super().get_multi_dataset_batch_sampler(dataset, whole, generator, seed)
        else:
            steps = self._weighted = self._weigh(whole, weights, generator)
        is_dealt = ranks == 1 and parts == 1
        self._mixer = steps if is_dealt else StepBatches(steps, batch_samplers[0].batch_size, ranks, parts)
        return self._mixer

    def _refuse_short_sub_batches(self, samplers: list[BatchSampler]) -> None:
        """Raises a ValueError for a dataset that fills no sub-batch, of which the host's samplers would draw none."""
        if self.args.sub_batches == 1:
            return
        for (name, rows), sampler in zip(parts_of(self.train_dataset).items(), samplers, strict=True):
            if len(sampler) < self.args.world_size:
                raise ValueError(
                    f"sub_batches: got {self.args.sub_batches} with {len(rows)} rows of {name!r}, expected "
                    f"enough for {self.args.world_size} full sub-batches of {self.sub_batch_size}: short ones would not count as "
                    "much. Add rows, or raise sub_batches."
                )

    def _weigh(self, samplers: list[BatchSampler], weights: Any, generator: torch.Generator | None) -> WeightedBatches:
        parts = parts_of(self.train_dataset)
        shares = shares_of(weights, dict(zip(parts, map(len, samplers), strict=True)))
        return WeightedBatches([*map(len, parts.values())], samplers, shares, self.data_seed, generator)

    @property
    def data_seed(self) -> int:
        """What orders of rows are drawn from."""
        seed: int = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return seed

    @property
    def sub_batch_size(self) -> int:
        """The rows of a sub-batch; a ValueError where the host has halved a batch until it cannot be made of them."""
        rows = self._train_batch_size if self.args.auto_find_batch_size else self.args.train_batch_size
        parts = self.args.sub_batches
        if parts > 1 and (rows % parts or rows == parts):
            raise ValueError(
                f"sub_batches: got {parts} for batches of {rows}, expected a divisor that leaves two rows each."
            )
        return int(rows // parts)

    def steps_by_dataset(self, batches: int) -> dict[str, float]:
        """Returns the share of an epoch's first `batches` batches that each dataset had; empty without weights."""
        if self._weighted is None:
            return {}
        shares = self._weighted.shares_until(batches * self.args.sub_batches)
        return dict(zip(parts_of(self.train_dataset), shares.tolist(), strict=True))

    def mix_for_epoch(self, epoch: int) -> None:
        """Tells the sampler that mixes several datasets the epoch; the host's own call may not arrive in a resumed run."""
        if self._weighted is not None:
            self._weighted.begin_epoch(epoch)
        elif self._mixer is not None and hasattr(self._mixer, "set_epoch"):
            self._mixer.set_epoch(epoch)
