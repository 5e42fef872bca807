"""Where the embeddings of the rows to be planned come from: encoded for the plan, or harvested from training.

A source returns those of the rows asked for (`fetch`) that it has embeddings of. One that harvests also watches the
training passes, keeps an `EmbeddingStore` per dataset, and is saved in checkpoints.
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

from gcbs_st.embeddings.encode import Collate, MeanSquare, encode_collated, encode_rows, no_embeddings
from gcbs_st.embeddings.fixed import Embedder, FixedView, view_key
from gcbs_st.embeddings.harvest import Harvester
from gcbs_st.embeddings.store import NEVER, EmbeddingStore, make_key
from gcbs_st.embeddings.views import View, alike_and_not, sentence_embedding
from gcbs_st.ranks import agree, failing_together, gather_rows, wait_for_all
from gcbs_st.rows.columns import read_columns
from gcbs_st.rows.training_set import TrainingPart

logger = logging.getLogger(__name__)

EMBEDDINGS_FOLDER = "gcbs_embeddings"
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


@dataclass(frozen=True)
class SourceOptions:
    """How the rows to be planned are embedded; see the fields of `GCBSTrainingArguments` of the same names."""

    harvest: bool  # take embeddings from the training passes
    first_plan: str  # how the first plan is made, before any were harvested: "encode" or "random"
    max_age: int | None  # rows embedded longer ago than this many optimizer steps are encoded; None for no row
    budget: int | None  # at most this many rows are encoded for a plan; None for no limit
    dtype: str  # of the stored embeddings
    folder: Path | None  # for them, which all ranks see; None to keep them in memory
    batch_size: int  # texts per forward pass when encoding
    show_progress: bool  # of encoding
    # Whether the model as it is can embed rows outside of training; not where its weights are spread over processes.
    encodes: bool = True
    view: View = sentence_embedding  # what is planned on of the outputs of a pass, encoded or harvested
    # Makes the features of rows, where the user's collator may change texts; None to encode them as they are.
    collate: Collate | None = None
    # What is planned on: None stands for the model as it is. Of two views rows share a batch that are alike in the
    # first and not in the second.
    planned_views: Sequence[FixedView | None] = (None,)
    in_windows: bool = False  # the rows are some of a stream's, and others follow
    judge: FixedView | None = None  # whose scores say what is a false negative; None for those that are planned on


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
        self.model, self.parts, self.options, self.autocast = model, dict(parts), options, autocast
        self.ranks, self.is_main, self.device = ranks, is_main, device or torch.device("cpu")
        self.harvests, self.seconds, self.norms = options.harvest, 0.0, MeanSquare()
        self.stores: dict[str, EmbeddingStore] = {}
        self._warned: set[str] = set()
        self._harvester: Harvester | None = None
        # Rows, steps and one array per column, until `sync` sends them to the process that plans.
        self._outbox: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in parts}
        # The ranks of one node write to the same files; otherwise their rows are sent to the one that plans.
        self._shares_files = ranks > 1 and options.folder is not None
        self.unreported_seconds = 0.0  # of making fixed views, until a plan reports them
        self._make_fixed_views()
        if not self.harvests:
            return
        for index, (name, part) in enumerate(self.parts.items()):
            if not part.columns:
                continue
            key = make_key(fingerprint, name, part.columns, model, options.view)
            folder = options.folder / str(index) if options.folder is not None else None
            rows, columns = len(part.dataset), len(part.columns)
            self.stores[name] = EmbeddingStore(rows, columns, key, dtype=options.dtype, folder=folder)
            if is_main:
                self.stores[name].clear()
        wait_for_all(ranks)  # nobody writes before the files of an earlier run are gone
        self._harvester = Harvester(model, next(iter(self.parts.values())).column_positions, options.view)

    def close(self) -> None:
        """Stops watching the model and deletes what is stored outside of checkpoints."""
        if self._harvester is not None:
            self._harvester.detach()
        for store in self.stores.values():
            store.close()
            if self.is_main:
                store.clear()

    @contextmanager
    def watching(self, name: str, rows: np.ndarray, step: int) -> Iterator[None]:
        """Harvests the rows that pass the model meanwhile.

        `rows` are the batch's (B,) ids in the dataset `name`, which may be one that is not planned; `step` is the
        number of optimizer steps taken so far.
        """
        if self._harvester is None or not self.harvests:
            yield
            return
        part = self.parts[name]
        with self._harvester.watching(name, rows if part.columns else None, step, part.column_positions):
            yield
        if self._harvester.is_full:
            self._store_harvest()

    def number(self, features: Sequence[dict[str, Any]]) -> None:
        """See `Harvester.number`."""
        if self._harvester is not None and self.harvests:
            self._harvester.number(features)

    def _store_harvest(self) -> None:
        began = time.perf_counter()
        assert self._harvester is not None
        for name, rows, step, arrays, norms in self._harvester.take():
            if len(rows):
                self._put(name, rows, arrays, step)
                store = self.stores[name]
                store.squares += float((norms.astype(np.float64) ** 2).sum())
                store.squares_count += norms.size
        self.seconds += time.perf_counter() - began

    def _put(self, name: str, rows: np.ndarray, arrays: list[np.ndarray], step: int) -> None:
        store = self.stores[name]
        if self.ranks == 1 or self._shares_files:
            store.write(rows, arrays, step)
        else:
            self._outbox[name].append((rows, np.full(len(rows), step), *arrays))

    def sync(self) -> None:
        """Brings all harvested rows to the process that plans. To be called by all ranks."""
        if self._harvester is None or not self.harvests:
            return
        self._store_harvest()
        if self.ranks == 1 or self._shares_files:
            wait_for_all(self.ranks)
            return
        for name, store in self.stores.items():
            no_arrays = [np.zeros((0, 0), np.float32)] * store.columns
            own = self._outbox[name] or [(np.zeros(0, np.int64), np.zeros(0, np.int64), *no_arrays)]
            self._outbox[name] = []
            joined = (np.concatenate(parts) for parts in zip(*own, strict=True))
            rows, steps, *arrays = (gather_rows(one, self.ranks, self.device) for one in joined)
            if self.is_main and len(rows):
                latest_last = np.argsort(steps, kind="stable")
                store.write(rows[latest_last], [array[latest_last] for array in arrays], steps[latest_last])

    @property
    def is_fixed(self) -> bool:
        """Whether what is planned on stays as it is while the model trains."""
        return None not in self.options.planned_views

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
                key = view_key(view, name, part.dataset, self.autocast)
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
            self.norms = MeanSquare()
            with view.embedder.with_own_weights():
                arrays = self._encode(name, np.arange(len(part.dataset)), view.embedder)
            with failing_together("keeping embeddings", self.ranks):
                if self.is_main:
                    view.keep(name, key, arrays, self.norms.value)
        if self.is_main and len(without := view.without_text(name)):
            self._warn_useless(name, without, len(part.dataset), part.columns[0].name)

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
        if self.harvests and self._harvester is not None:
            hidden = self._harvester.batches > 0 and self._harvester.complete == 0
            if agree(hidden, self.ranks):
                logger.warning(
                    "embedding_source: harvest, but the training passes show no embeddings: the loss or model hides "
                    "them, or a collator of your own returns no dict. %s",
                    "Rows are encoded before each plan instead."
                    if self.options.encodes
                    else "Batches stay random, since no process holds all weights of the model to encode rows with.",
                )
                self.harvests = False
        if not self.harvests and not self.options.encodes:
            return NOTHING
        if not self.harvests:
            self.norms = MeanSquare()
            arrays = self._encode(name, rows)
            if not self.is_main:
                return NOTHING
            useful = self._useful(name, rows, arrays)
            kept = [array if useful.all() else array[useful] for array in arrays]
            return Fetched(rows[useful], kept, np.zeros(int(useful.sum())))
        self._refuse_diverged(name, rows)
        store = self.stores[name]
        steps = store.steps() if self.is_main else np.zeros(0, np.int64)
        missing = agree(self._choose(rows, steps, step, everything), self.ranks)
        if len(missing):
            self._refresh(name, missing, step)
            steps = store.steps() if self.is_main else steps
        if not self.is_main:
            return NOTHING
        seen = rows[steps[rows] != NEVER]
        return Fetched(seen, store.read(seen) if len(seen) else [], step - steps[seen])

    def mean_square_norm(self, name: str) -> float:
        """Returns the mean squared norm of a dataset's embeddings before they became unit rows; 1 without any."""
        first = self.options.planned_views[0]
        if first is not None:  # a reference's norms say nothing of those of the model
            return first.mean_square_norm(name) if first.name == INITIAL and self.is_main else 1.0
        if not self.harvests:
            return self.norms.value
        store = self.stores[name]
        return store.squares / store.squares_count if store.squares_count else 1.0

    def _useful(self, name: str, rows: np.ndarray, arrays: list[np.ndarray]) -> np.ndarray:
        """Returns (m,) bool, whether all texts of a row have an embedding; warns, once, where some have none."""
        with_text = np.stack([array.any(axis=1) for array in arrays])
        useful = np.asarray(with_text.all(axis=0))
        if not useful.all():
            row = np.flatnonzero(~useful)[0]
            column = int(np.flatnonzero(~with_text[:, row])[0])
            self._warn_useless(name, rows[~useful], len(rows), self.parts[name].columns[column].name)
        return useful

    def _warn_useless(self, name: str, rows: np.ndarray, count: int, column: str) -> None:
        """Warns, once, of rows a text of which has no embedding, `rows` of `count`; the first's text is in a column."""
        if name in self._warned:
            return
        self._warned.add(name)
        text = read_columns(self.parts[name].dataset, rows[:1], [column])[0][0]
        of = f" {name!r}" if name else ""
        logger.warning(
            "%d of %d rows of the training set%s have a text without an embedding (zero, NaN or infinity), for "
            "example %.120r in row %d. They are trained as ever, but not planned: they fill batches "
            "with random rows.",
            *(len(rows), count, of, text, rows[0]),
        )

    def _refuse_diverged(self, name: str, rows: np.ndarray) -> None:
        """Raises, on all ranks, where nothing that was harvested can be used."""
        assert self._harvester is not None
        seen, useful = agree((self._harvester.rows_seen, self._harvester.rows_useful), self.ranks)
        if seen and not useful:
            part = self.parts[name]
            raise ValueError(no_embeddings(read_columns(part.dataset, rows[:1], [part.columns[0].name])[0][0]))

    def _choose(self, rows: np.ndarray, steps: np.ndarray, step: int, everything: bool) -> np.ndarray:
        """Returns the rows to be encoded, on the process that plans: never embedded ones first, then the oldest."""
        if not self.is_main:
            return np.zeros(0, np.int64)
        never, old = steps[rows] == NEVER, np.zeros(len(rows), bool)
        if self.options.max_age is not None and (steps != NEVER).any():
            old = never | (steps[rows] < step - self.options.max_age)
        chosen = rows[old][np.argsort(steps[rows[old]], kind="stable")][: self.options.budget]
        if everything or self.options.first_plan == "encode":
            chosen = np.union1d(chosen, rows[never])
        return np.sort(chosen)

    def _refresh(self, name: str, rows: np.ndarray, step: int) -> None:
        mine = self._slice(rows)
        with failing_together("embedding", self.ranks):
            if len(mine):
                arrays = self._encode_own(name, mine)
                useful = self._useful(name, mine, arrays)
                self._put(name, mine[useful], [array[useful] for array in arrays], step)
        self.sync()

    def _slice(self, rows: np.ndarray) -> np.ndarray:
        """Returns this process's share of the rows."""
        rank = torch.distributed.get_rank() if self.ranks > 1 else 0
        return np.array_split(rows, self.ranks)[rank]

    def _encode(self, name: str, rows: np.ndarray, embedder: Embedder | None = None) -> list[np.ndarray]:
        """Returns one array per column on the process that plans, of rows that all ranks take part in encoding."""
        with failing_together("embedding", self.ranks):
            arrays = self._encode_own(name, self._slice(rows), embedder)
        if self.ranks == 1:
            return arrays
        return [gather_rows(array, self.ranks, self.device) for array in arrays]

    def _encode_own(self, name: str, rows: np.ndarray, embedder: Embedder | None = None) -> list[np.ndarray]:
        part, options = self.parts[name], self.options
        if embedder is None:  # the model as it is
            if not options.encodes:  # what asks for it is refused before training; a pass would never end
                raise ValueError("rows are to be encoded by a model that no process holds whole.")
            embedder = Embedder(self.model, {name: part.columns}, options.view, options.collate)
        columns = embedder.columns[name]
        if not len(rows):
            return [np.zeros((0, 0), np.float32) for _ in columns]
        passes: dict[str, Any] = {
            "batch_size": self.options.batch_size,
            "progress": f"planning {name}".strip() if self.options.show_progress and self.is_main else None,
            "autocast": self.autocast,
            "view": embedder.view,
            "norms": self.norms,
        }
        if embedder.collate is None:
            return encode_rows(embedder.model, part.dataset, rows, columns, **passes)
        return encode_collated(
            embedder.model, part.dataset, rows, columns, part.column_positions, embedder.collate, **passes
        )

    def save(self, folder: Path) -> None:
        """Writes what was harvested into the folder of a checkpoint; all ranks must have called `sync`."""
        if self.harvests and self.is_main:
            for name, place in self._places_in(folder).items():
                self.stores[name].save(place)

    def load(self, folder: Path) -> None:
        """Takes what was harvested until a checkpoint; one without it is reported, and nothing taken."""
        if self.harvests and self.is_main:
            for name, place in self._places_in(folder).items():
                try:
                    self.stores[name].load(place)
                except ValueError as error:
                    logger.warning(
                        "The embeddings in the checkpoint cannot be resumed from: %s. Plans start as in a new run.",
                        error,
                    )
        if self.harvests:
            wait_for_all(self.ranks)  # the files are there before anybody writes to them

    def _places_in(self, checkpoint: Path) -> dict[str, Path]:
        places = {name: checkpoint / EMBEDDINGS_FOLDER / str(index) for index, name in enumerate(self.parts)}
        return {name: places[name] for name in self.stores}
