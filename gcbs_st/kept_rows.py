"""What one call of `train` keeps of rows: their embeddings for plans, and the states that losses keep of them.

In: the ids of a batch's rows, as the training loader hands them out. Both are opened when the loader is made, told
which rows pass the model, saved in checkpoints, and closed when training ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from gcbs_st.embeddings import text_columns, text_names
from gcbs_st.harvest import number_rows
from gcbs_st.planning import parts_of, planned_names, source_options
from gcbs_st.row_states import RowStates
from gcbs_st.source_parts import Part
from gcbs_st.sources import EmbeddingSource


class KeptRows:
    """The source of embeddings and the states of losses, of one trainer; both are there while it trains."""

    def __init__(self, trainer: Any, collect_features: Callable[[dict[str, Any]], tuple[list[Any], Any]]) -> None:
        """Takes whose rows they are.

        Args:
            trainer: that plans its batches.
            collect_features: the host's, which makes a loss's features of a batch.
        """
        self.trainer, self._collect_features = trainer, collect_features
        self.source: EmbeddingSource | None = None
        self.row_states: RowStates | None = None
        self._texts: dict[str, list[str]] = {}

    def open(self, loader: DataLoader[Any], folder: Path) -> None:
        """Starts anew with the rows of a loader.

        Args:
            loader: of the training set, not iterated yet; its batches carry the ids of their rows if anybody asks.
            folder: of the run.

        Raises:
            ValueError: columns that cannot be planned on, or states of a loss that are of other rows.
        """
        self.close()
        trainer, args = self.trainer, self.trainer.args
        parts = self._parts()
        sizes = {name: len(part.dataset) for name, part in parts.items()}
        self.row_states = RowStates(trainer.loss, sizes, self._features_of, seed=args.seed, processes=args.world_size)
        harvest = args.embedding_source == "harvest"
        if harvest or self.row_states.losses:
            number_rows(loader)
        self.source = EmbeddingSource(
            trainer.model,
            parts,
            source_options(args, folder, trainer.planning_view()),
            fingerprint=trainer.training_set_fingerprint() if harvest else "",
            processes=args.world_size,
            is_main=trainer.is_world_process_zero(),
            device=args.device,
            autocast=trainer.accelerator.autocast,
        )

    def close(self) -> None:
        """Stops watching the model. The states of the losses stay in the losses."""
        if self.source is not None:
            self.source.close()
        if self.row_states is not None:
            self.row_states.close()
        self.source = None

    @contextmanager
    def watching(self, rows: np.ndarray, step: int) -> Iterator[None]:
        """Tells the losses which rows pass, and harvests what passes, meanwhile.

        Args:
            rows: (B,) ids of the batch's rows in the concatenated datasets.
            step: optimizer steps taken so far.

        Yields:
            Nothing.
        """
        if self.source is None or self.row_states is None:
            yield
            return
        with self.row_states.telling(rows), self.source.watching(rows, step):
            yield

    def number(self, features: Sequence[dict[str, Any]]) -> None:
        """Puts a number beside each text of a training batch, if it is harvested.

        Args:
            features: of each text column.
        """
        if self.source is not None:
            self.source.number(features)

    def sync(self) -> None:
        """Brings what all processes know together. To be called by all of them, before one of them saves."""
        if self.source is not None:
            self.source.sync()
        if self.row_states is not None:
            self.row_states.merge(self.trainer.args.device)

    def save(self, folder: Path) -> None:
        """Writes into a checkpoint; on one process.

        Args:
            folder: the checkpoint's.
        """
        if self.source is not None:
            self.source.save(folder)
        if self.row_states is not None:
            self.row_states.save(folder)

    def _parts(self) -> dict[str, Part]:
        trainer, parts = self.trainer, {}
        labels = trainer.data_collator.valid_label_columns
        planned = planned_names(trainer.args.planner_columns, trainer.train_dataset)
        for name, dataset in parts_of(trainer.train_dataset).items():
            columns = text_columns(
                dataset,
                label_columns=labels,
                prompts=trainer.args.prompts,
                router_mapping=trainer.args.router_mapping,
                dataset_name=name or None,
                names=planned[name],
            )
            self._texts[name] = text_names(dataset, labels)
            places = [self._texts[name].index(column.name) for column in columns]
            columns = [trainer.as_trained(column, place) for column, place in zip(columns, places, strict=True)]
            parts[name] = Part(dataset, columns, places)
        return parts

    def _features_of(self, name: str, rows: np.ndarray, column: int) -> dict[str, Any]:
        """The features of some rows of one text column of the loss, as the training loader and the host make them."""
        assert self.source is not None
        block = self.source.parts[name].dataset[rows]
        kept = {self._texts[name][column], "dataset_name"}
        values = {key: block[key] for key in block if key in kept}
        examples = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        inputs = self.trainer._prepare_inputs(self.trainer.data_collator(examples))
        features: dict[str, Any] = self._collect_features(inputs)[0][0]
        return features
