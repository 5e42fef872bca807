"""Where the embeddings of the rows to be planned come from: encoded for the plan, or harvested from training.

A source returns those of the rows asked for (`fetch`) that it has embeddings of. One that harvests also watches the
training passes, keeps an `EmbeddingStore` per dataset, and is saved in checkpoints.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcbs_st.embeddings.encode import Collate, MeanSquare, encode_collated, encode_rows, no_embeddings
from gcbs_st.embeddings.harvest import Harvester
from gcbs_st.embeddings.store import NEVER, EmbeddingStore, make_key
from gcbs_st.embeddings.views import View, sentence_embedding
from gcbs_st.ranks import agree, failing_together, gather_rows, wait_for_all
from gcbs_st.rows.columns import read_columns
from gcbs_st.rows.training_set import TrainingPart

logger = logging.getLogger(__name__)

EMBEDDINGS_FOLDER = "gcbs_embeddings"


@dataclass(frozen=True)
class Fetched:
    """Rows and their embeddings; on all but the main process both are empty."""

    rows: np.ndarray  # (m,) int64, ascending
    arrays: list[np.ndarray]  # one (m, d) array of unit rows per column, anchors first
    # (m,) optimizer steps since each row was embedded; empty for word vectors, which are no embedding of this model.
    ages: np.ndarray


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
    view: View = sentence_embedding  # what is planned on of the outputs of a pass, encoded or harvested
    # Makes the features of rows, where the user's collator may change texts; None to encode them as they are.
    collate: Collate | None = None


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

    def fetch(self, name: str, rows: np.ndarray, step: int, *, everything: bool = False) -> Fetched:
        """Returns those of the (m,) ascending rows that there are embeddings of. To be called by all ranks.

        `step` is the number of optimizer steps taken so far; with `everything` what would be missing otherwise is
        encoded. Raises a ValueError as `gcbs_st.embeddings.encode.encode_rows` does.
        """
        self.sync()
        if self.harvests and self._harvester is not None:
            hidden = self._harvester.batches > 0 and self._harvester.complete == 0
            if agree(hidden, self.ranks):
                logger.warning(
                    "embedding_source: harvest, but the training passes show no embeddings: the loss or model hides "
                    "them, or a collator of your own returns no dict. Rows are encoded before each plan instead."
                )
                self.harvests = False
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
        if not self.harvests:
            return self.norms.value
        store = self.stores[name]
        return store.squares / store.squares_count if store.squares_count else 1.0

    def _useful(self, name: str, rows: np.ndarray, arrays: list[np.ndarray]) -> np.ndarray:
        """Returns (m,) bool, whether all texts of a row have an embedding; warns, once, where some have none."""
        with_text = np.stack([array.any(axis=1) for array in arrays])
        useful = np.asarray(with_text.all(axis=0))
        if not useful.all() and name not in self._warned:
            self._warned.add(name)
            row = np.flatnonzero(~useful)[0]
            column = int(np.flatnonzero(~with_text[:, row])[0])
            part = self.parts[name]
            text = read_columns(part.dataset, rows[[row]], [part.columns[column].name])[0][0]
            of = f" {name!r}" if name else ""
            logger.warning(
                "%d of %d rows of the training set%s have a text without an embedding (zero, NaN or infinity), for "
                "example %.120r in row %d. They are trained as ever, but not planned: they fill batches "
                "with random rows.",
                *(int((~useful).sum()), len(rows), of, text, rows[row]),
            )
        return useful

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

    def _encode(self, name: str, rows: np.ndarray) -> list[np.ndarray]:
        """Returns one array per column on the process that plans, of rows that all ranks take part in encoding."""
        with failing_together("embedding", self.ranks):
            arrays = self._encode_own(name, self._slice(rows))
        if self.ranks == 1:
            return arrays
        return [gather_rows(array, self.ranks, self.device) for array in arrays]

    def _encode_own(self, name: str, rows: np.ndarray) -> list[np.ndarray]:
        part = self.parts[name]
        if not len(rows):
            return [np.zeros((0, 0), np.float32) for _ in part.columns]
        passes: dict[str, Any] = {
            "batch_size": self.options.batch_size,
            "progress": f"planning {name}".strip() if self.options.show_progress and self.is_main else None,
            "autocast": self.autocast,
            "view": self.options.view,
            "norms": self.norms,
        }
        if self.options.collate is None:
            return encode_rows(self.model, part.dataset, rows, part.columns, **passes)
        return encode_collated(
            self.model, part.dataset, rows, part.columns, part.column_positions, self.options.collate, **passes
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
