"""Where the embeddings of the rows to be planned come from: encoded for the plan, harvested, or made once for all.

A source returns those of the rows asked for (`fetch`) that it has embeddings of. One that harvests also watches the
training passes, and is saved in checkpoints.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from gcbs_st.embeddings.fixed import FixedView, view_key
from gcbs_st.embeddings.harvested_rows import HarvestedRows
from gcbs_st.embeddings.row_encoder import RowEncoder
from gcbs_st.embeddings.source_options import SourceOptions
from gcbs_st.embeddings.views import alike_and_not
from gcbs_st.ranks import agree, failing_together
from gcbs_st.rows.training_set import TrainingPart

logger = logging.getLogger(__name__)

INITIAL = "initial"


@dataclass(frozen=True)
class Fetched:
    """Rows and their embeddings; on all but the main process both are empty."""

    rows: np.ndarray  # (m,) int64, ascending
    arrays: list[np.ndarray]  # one (m, d) array of unit rows per column, anchors first
    # (m,) optimizer steps since each row was embedded; empty for a reference's, which are none of this model.
    ages: np.ndarray
    # What is planned on instead, arrays alike in shape to one another; None for `arrays` themselves.
    planned: list[np.ndarray] | None = None
    # By a reference, which says what is a false negative, see `SourceOptions.judge`; None without one.
    judged: list[np.ndarray] | None = None


NOTHING = Fetched(np.zeros(0, np.int64), [], np.zeros(0))


class EmbeddingSource:
    """The embeddings of one call of `train`. Watches the unwrapped model, if rows are to be harvested, until `close`.

    `parts` are the datasets by name, in the order in which they are concatenated; `is_main` is true of the process
    that plans; `device` is what the ranks exchange tensors from; `autocast` makes the context of a training pass.
    """

    def __init__(
        self,
        model: Any,
        parts: Mapping[str, TrainingPart],
        options: SourceOptions,
        *,
        fingerprint: str = "",
        ranks: int = 1,
        is_main: bool = True,
        device: torch.device | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.parts, self.options = dict(parts), options
        self.ranks, self.is_main = ranks, is_main
        self.encoder = RowEncoder(
            model, self.parts, options, ranks=ranks, is_main=is_main, device=device, autocast=autocast
        )
        self.seconds = 0.0  # of everything that training alone would not need
        self.unreported_seconds = 0.0  # of making fixed views, until a plan reports them
        self._make_fixed_views()
        # None where rows are encoded, and once training has shown that there is nothing to harvest.
        self.harvested = HarvestedRows(self.encoder, fingerprint) if options.harvest else None

    def close(self) -> None:
        """Stops watching the model and deletes what is stored outside of checkpoints."""
        if self.harvested is not None:
            self.harvested.close()

    @contextmanager
    def watching(self, name: str, rows: np.ndarray, step: int) -> Iterator[None]:
        """Harvests the rows that pass the model meanwhile.

        `rows` are the batch's (B,) ids in the dataset `name`, which may be one that is not planned; `step` is the
        number of optimizer steps taken so far.
        """
        if self.harvested is None:
            yield
            return
        with self.harvested.watching(name, rows, step):
            yield
        if self.harvested.harvester.is_full:
            began = time.perf_counter()
            self.harvested.store()
            self.seconds += time.perf_counter() - began

    def number(self, features: Sequence[dict[str, Any]]) -> None:
        """See `Harvester.number`."""
        if self.harvested is not None:
            self.harvested.harvester.number(features)

    def sync(self) -> None:
        """Brings all harvested rows to the process that plans. To be called by all ranks."""
        if self.harvested is not None:
            began = time.perf_counter()
            self.harvested.sync()
            self.seconds += time.perf_counter() - began

    @property
    def is_fixed(self) -> bool:
        """Whether what is planned on stays as it is while the model trains."""
        return None not in self.options.planned_views

    # ---------------------------------------------------------------- models that do not train

    def _make_fixed_views(self) -> None:
        """Embeds all rows by the models that do not train, where no earlier run has kept what comes of it."""
        if self.options.in_windows:
            return  # each window when it is planned
        began = time.perf_counter()
        for view in self._fixed_views():
            for name, part in self.parts.items():
                if part.columns:
                    self._make_fixed_view(view, name, part)
            view.release()
        self.unreported_seconds = time.perf_counter() - began
        self.seconds += self.unreported_seconds

    def _fixed_views(self) -> list[FixedView]:
        views = dict.fromkeys([*self.options.planned_views, self.options.judge])
        return [view for view in views if view is not None]

    def take_window(self, name: str, dataset: Dataset) -> None:
        """Takes other rows of a stream in the place of those of before; they are embedded when they are asked for."""
        self.parts[name] = replace(self.parts[name], dataset=dataset)
        for view in self._fixed_views():
            view.forget(name)

    def _make_views_of_window(self, name: str) -> None:
        """Embeds the rows of a window by the models that do not train, unless that was done."""
        for fixed in self._fixed_views() if self.options.in_windows else ():
            self._make_fixed_view(fixed, name, self.parts[name])

    def _make_fixed_view(self, view: FixedView, name: str, part: TrainingPart) -> None:
        key, found = None, False
        if agree(view.has(name), self.ranks):  # of an earlier start of the same run, with larger batches
            return
        with failing_together("looking for embeddings on disk", self.ranks):
            if self.is_main and not self.options.in_windows:
                key = view_key(view, name, part.dataset, self.encoder.autocast)
                found = view.open(name, key)
        if agree(view.only_on_disk and not found, self.ranks):
            raise ValueError(
                f"planner_view: {view.name} stands for the weights that the run began with, but the model that it is "
                "resumed with has others, and the embeddings that it kept on disk are gone. Give the trainer the model "
                "that the run began with; the checkpoint's weights are loaded into it."
            )
        if agree(found, self.ranks):
            logger.info("The embeddings of %s by %s are those of an earlier run.", name or "the rows", view.name)
        else:
            with view.embedder.with_own_weights():
                arrays = self.encoder.encode(name, np.arange(len(part.dataset)), view.embedder)
            with failing_together("keeping embeddings", self.ranks):
                if self.is_main:
                    view.keep(name, key, arrays, self.encoder.norms.value)
        if self.is_main and len(without := view.without_text(name)):
            self.encoder.warn_useless(name, without, len(part.dataset), part.columns[0].name)

    # ---------------------------------------------------------------- what a plan asks for

    def fetch(self, name: str, rows: np.ndarray, step: int, *, everything: bool = False) -> Fetched:
        """Returns those of the (m,) ascending rows that there are embeddings of. To be called by all ranks.

        `step` is the number of optimizer steps taken so far; with `everything` what would be missing otherwise is
        encoded. Raises a ValueError as `gcbs_st.embeddings.encode.encode_rows` does.
        """
        views, judge = self.options.planned_views, self.options.judge
        self._make_views_of_window(name)
        found = self._fetch_current(name, rows, step, everything) if None in views else None
        if not self.is_main:
            return NOTHING
        kept = rows if found is None else found.rows
        for view in (*views, judge):
            if view is not None and len(kept):
                kept = kept[view.useful(name, kept)]
        if not len(kept):
            return NOTHING

        def read(view: FixedView | None) -> list[np.ndarray]:
            if view is not None:
                return view.read(name, kept)
            assert found is not None
            if len(kept) == len(found.rows):
                return found.arrays
            places = np.searchsorted(found.rows, kept)
            return [array[places] for array in found.arrays]

        arrays = read(views[0])
        ages = np.zeros(0)
        if views[0] is None:
            assert found is not None
            ages = found.ages[np.searchsorted(found.rows, kept)]
        elif views[0].name == INITIAL:
            ages = np.full(len(kept), step)
        planned = alike_and_not(arrays, read(views[1])) if len(views) == 2 else None
        return Fetched(kept, arrays, ages, planned, None if judge is None else read(judge))

    def _fetch_current(self, name: str, rows: np.ndarray, step: int, everything: bool) -> Fetched:
        """What `fetch` returns of the model as it is."""
        self.sync()
        if self.harvested is not None and agree(self.harvested.sees_nothing, self.ranks):
            logger.warning(
                "embedding_source: harvest, but the training passes show no embeddings: the loss or model hides "
                "them, or a collator of your own returns no dict. %s",
                "Rows are encoded before each plan instead."
                if self.options.encodes
                else "Batches stay random, since no process holds all weights of the model to encode rows with.",
            )
            self.harvested.close()
            self.harvested = None
        if self.harvested is not None:
            return Fetched(*self.harvested.fetch(name, rows, step, everything=everything))
        if not self.options.encodes:
            return NOTHING
        arrays = self.encoder.encode(name, rows)
        if not self.is_main:
            return NOTHING
        useful = self.encoder.useful(name, rows, arrays)
        kept = [array if useful.all() else array[useful] for array in arrays]
        return Fetched(rows[useful], kept, np.zeros(int(useful.sum())))

    def mean_square_norm(self, name: str) -> float:
        """Returns the mean squared norm of a dataset's embeddings before they became unit rows; 1 without any."""
        first = self.options.planned_views[0]
        if first is not None:  # a reference's norms say nothing of those of the model
            return first.mean_square_norm(name) if first.name == INITIAL and self.is_main else 1.0
        return self.encoder.norms.value if self.harvested is None else self.harvested.mean_square_norm(name)

    # ---------------------------------------------------------------- checkpoints

    def save(self, folder: Path) -> None:
        """Writes what was harvested into the folder of a checkpoint; all ranks must have called `sync`."""
        if self.harvested is not None:
            self.harvested.save(folder)

    def load(self, folder: Path) -> None:
        """Takes what was harvested until a checkpoint; one without it is reported, and nothing taken."""
        if self.harvested is not None:
            self.harvested.load(folder)
