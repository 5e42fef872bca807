"""The host's training loader, over samplers of ours: one for each dataset whose batches are planned.

In: the training set as the user gave it. Out: batches of row ids, and who drew how many of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from torch.utils.data import BatchSampler, DataLoader

from gcbs_st.batches.sampler import PlannedBatchSampler
from gcbs_st.rows.columns import text_names
from gcbs_st.rows.training_set import RowFacts, fingerprint, parts_of, read_row_facts, require_rows, without_columns
from gcbs_st.training.arguments import PlanningArguments
from gcbs_st.training.loss_facts import contrasts_rows, gathers_negatives, name_loss
from gcbs_st.training.mixing import DatasetMixing
from gcbs_st.training.refusals import (
    refuse_mixing,
    refuse_sampler,
    refuse_stream,
    refuse_sub_batches,
    refuse_unsupported,
)
from gcbs_st.training.rows_apart import RowsApart
from gcbs_st.training.stream import PlannedStream, StreamFeed

logger = logging.getLogger(__name__)


class PlannedLoading(DatasetMixing):
    """What a trainer of the host's loads its training rows with, so that somebody can say which of them meet.

    A dataset whose loss compares no rows of a batch with each other, or that has fewer rows than a batch, is loaded as
    the host loads it.
    """

    args: PlanningArguments

    def __init__(
        self, model: Any = None, args: Any = None, train_dataset: Any = None, *rest: Any, **kwargs: Any
    ) -> None:
        self.planned_samplers: dict[str, PlannedBatchSampler] = {}
        self.builds_train_loader = False
        self._loader_length = 0
        # Of groups and of listed positives, as they are when the trainer is made.
        self.given_columns: tuple[str | None, str | None] = (
            (None, None) if args is None else (args.group_column, args.positives_column)
        )
        self.facts: dict[str, RowFacts] = {}
        self.apart = RowsApart(self)
        self._fingerprint: str | None = None
        self._warned: set[str] = set()
        self._stream: IterableDataset | None = None  # as the user gave it, with the columns of facts
        self.feed: StreamFeed | None = None  # of a stream that is planned
        self._window: Dataset | None = None  # of it, which the plan in force is of
        super().__init__(model, args, train_dataset, *rest, **kwargs)

    # ---------------------------------------------------------------- datasets, as they are assigned

    @property
    def train_dataset(self) -> Any:
        """What is trained on, without columns of facts. Another one may be assigned before `train` is called again."""
        return self._train_dataset

    @train_dataset.setter
    def train_dataset(self, datasets: Any) -> None:
        if datasets is not None and datasets is getattr(self, "_train_dataset", None):
            return
        self.facts, self._fingerprint = {}, None
        self._stream = datasets if isinstance(datasets, IterableDataset) else None
        self.feed = self._window = None
        if self.fact_columns and isinstance(datasets, (Dataset, Mapping)):
            self.facts = read_row_facts(datasets, *self.given_columns)
        self._train_dataset = without_columns(datasets, self.fact_columns)

    @property
    def fact_columns(self) -> list[str]:
        """The columns that say something of rows and hold no texts to be embedded."""
        return [column for column in self.given_columns if column is not None]

    def training_parts(self) -> dict[str, Dataset]:
        """Returns what is trained on by name, "" for the only one; of a stream the rows that are planned now, if any are."""
        if self._stream is not None:
            return {} if self._window is None else {"": self._window}
        return parts_of(self.train_dataset)

    @property
    def eval_dataset(self) -> Any:
        """What is evaluated, without columns of facts, which the host would embed as texts."""
        return self._eval_dataset

    @eval_dataset.setter
    def eval_dataset(self, datasets: Any) -> None:
        self._eval_dataset = without_columns(datasets, self.fact_columns)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Returns the host's loader, of rows without columns of facts."""
        return super().get_eval_dataloader(without_columns(eval_dataset, self.fact_columns))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Returns the host's loader, of rows without columns of facts."""
        return super().get_test_dataloader(without_columns(test_dataset, self.fact_columns))

    def training_set_fingerprint(self) -> str:
        """Returns a text that another training set would not have; made once."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.train_dataset)
        return self._fingerprint

    # ---------------------------------------------------------------- what is planned

    def loss_of(self, name: str) -> Any:
        """Returns the loss of a dataset."""
        return self.loss.get(name) if isinstance(self.loss, dict) else self.loss

    def contrast_size(self, name: str) -> int:
        """Returns how many rows are contrasted with one another, which is what is planned as one batch.

        The rows of a batch, times the ranks if the loss gathers the negatives of all.
        """
        return self._contrasted(name, self.planned_samplers[name].batch_size)

    def _contrasted(self, name: str, batch_size: int) -> int:
        return batch_size * (self.args.world_size if gathers_negatives(self.loss_of(name)) else 1)

    def refuse_unplannable(self) -> None:
        """Raises where batches are to be planned and cannot be.

        Raises a TypeError for rows that can be neither counted nor streamed. Raises a ValueError for batches that
        another sampler composes, or that do not reach the loss as they were planned.
        """
        if self.train_dataset is None:
            return
        names = parts_of(self.train_dataset)
        refuse_mixing(self.args, list(names), self._stream is not None)
        refuse_sub_batches(self)
        if any(contrasts_rows(self.loss_of(name)) for name in names):
            require_rows(self.train_dataset)
            refuse_sampler(self.args)
            refuse_unsupported(self)
            if self._stream is not None:
                refuse_stream(self)
            if self.args.planning_window is not None and len(names) > 1:
                raise ValueError(
                    f"planning_window: got {self.args.planning_window} with {len(names)} datasets, whose batches come in turns "
                    "of which none knows when its window is drawn. Leave it out, or use replan_steps."
                )

    def warn_once(self, key: str, message: str, *facts: Any) -> None:
        """Warns, on the main process, of what this trainer has not warned of before."""
        if key not in self._warned and self.is_world_process_zero():
            logger.warning(message, *facts)
        self._warned.add(key)

    # ---------------------------------------------------------------- the loader

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the host's loader over samplers of ours.

        Only this loader's batches are planned: the same dataset may also be the one that is evaluated.
        """
        self.refuse_unplannable()
        self.planned_samplers = {}
        self.forget_mix()
        self.builds_train_loader, given = True, self._train_dataset
        if self._stream is not None and self._contrasts(""):
            self._train_dataset = self._planned_stream()
        try:
            loader = super().get_train_dataloader()
        finally:
            self.builds_train_loader, self._train_dataset = False, given
        if self.planned_samplers or self.mixes:
            # Each start of its workers draws their seed, by default from the global numbers that dropout draws from
            # too. Persistent workers start once in a run, but again in a resumed one, whose dropout would then differ.
            getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
            self._loader_length = 0 if self._stream is not None else len(loader)
        return loader

    def _planned_stream(self) -> PlannedStream:
        """The stream that the host's loader reads instead of the user's; its first window is read now."""
        assert self._stream is not None
        if self.feed is not None:
            self.feed.close()
        # By default the main process would read for all and cut what it read anew; so each reads, and keeps its share.
        if self.accelerator.dataloader_config.dispatch_batches is None:
            self.accelerator.dataloader_config.dispatch_batches = False
        self.feed = StreamFeed(self, self._stream, self.args.train_batch_size)
        return PlannedStream.over(self._train_dataset, self.feed)

    def take_window(self, window: Dataset, facts: RowFacts, batch_size: int, seed: int) -> None:
        """Makes some rows of a stream, with what is known of them, what is planned next, by a sampler of their own."""
        labels = self.data_collator.valid_label_columns
        self._window, self.facts = window, {"": facts}
        shared = self.apart.shared_values("", window, labels)
        sampler = PlannedBatchSampler(
            window, batch_size, seed=seed, shared_values=shared, contrast_size=self._contrasted("", batch_size)
        )
        self.planned_samplers[""] = sampler
        self.apart.report_clashes("", sampler, text_names(window, labels))

    def get_batch_sampler(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> BatchSampler | None:
        """Returns our sampler for rows whose batches are planned, and the host's for all others.

        Ours takes its seed from the training arguments, since not every host passes one.
        """
        name = self._name_of(dataset)
        # The host halves only this one when it runs out of memory, and builds its loader from the other.
        size = self._train_batch_size if self.args.auto_find_batch_size else batch_size
        if name is not None and self.args.sub_batches > 1:
            size = batch_size = self.sub_batch_size
            drop_last = True  # a batch is cut into sub-batches of this size
        if name is None or not self._is_planned(name, dataset, size):
            return super().get_batch_sampler(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        shared = self.apart.shared_values(name, dataset, valid_label_columns or [])
        sampler = PlannedBatchSampler(
            dataset,
            size,
            drop_last,
            valid_label_columns,
            generator,
            seed=self.data_seed,
            shared_values=shared,
            contrast_size=self._contrasted(name, size),
        )
        self.planned_samplers[name] = sampler
        self.apart.report_clashes(name, sampler, text_names(dataset, valid_label_columns or []))
        return sampler

    def _name_of(self, dataset: Dataset) -> str | None:
        """The training set's name within its DatasetDict, "" if it is the only one, None if it is not trained on."""
        if not self.builds_train_loader:
            return None
        if isinstance(self.train_dataset, DatasetDict):
            # The same rows may stand under two names, with a loss each.
            new = (name for name in self.train_dataset if name not in self.planned_samplers)
            return next((name for name in new if self.train_dataset[name] is dataset), None)
        return "" if dataset is self.train_dataset else None

    def _contrasts(self, name: str) -> bool:
        """Whether a dataset's loss contrasts rows; warns, once, where it does not."""
        loss = self.loss_of(name)
        if contrasts_rows(loss):
            return True
        of_it = [one for one in parts_of(self.train_dataset) if self.loss_of(one) is loss]
        self.warn_once(
            f"loss {id(loss)}",
            "%s contrasts no rows of a batch with each other, so composing batches cannot help it: %s trained in the "
            "host's own batches, and nothing is embedded for plans.",
            name_loss(loss),
            f"the training set{f' {name!r}' if name else ''} is"
            if len(of_it) == 1
            else f"the training sets {of_it} are",
        )
        return False

    def _is_planned(self, name: str, dataset: Dataset, batch_size: int) -> bool:
        weights = self.args.dataset_weights
        if isinstance(weights, Mapping) and weights[name] == 0:
            return False  # never drawn
        of = f" {name!r}" if name else ""
        if not self._contrasts(name):
            return False
        if len(dataset) < batch_size:
            self.warn_once(
                f"rows of {name}",
                "The training set%s has %d rows, fewer than the %d of a batch: there is nothing to plan, and it is "
                "trained as the host trains it.",
                of,
                len(dataset),
                batch_size,
            )
            return False
        return True

    def _steps_an_epoch(self) -> int:
        return max(1, int(np.ceil(self._loader_length / self.args.gradient_accumulation_steps)))
