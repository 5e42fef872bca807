"""Where the embeddings of the rows to be planned come from: encoded for the plan, or harvested from training.

A source is asked for rows (`fetch`) and answers with those that it has embeddings of. One that harvests also
watches the training passes, keeps an `EmbeddingStore` a dataset, and is saved in checkpoints.
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
from gcbs_st.rows.row_ids import find_dataset
from gcbs_st.rows.training_set import TrainingPart

logger = logging.getLogger(__name__)

EMBEDDINGS_FOLDER = "gcbs_embeddings"


@dataclass(frozen=True)
class Fetched:
    """Rows and their embeddings; on all but the main process both are empty.

    Attributes:
        rows: (m,) int64, ascending.
        arrays: one (m, d) array of unit rows a column, anchors first.
        ages: (m,) optimizer steps since each row was embedded; empty for word vectors, which are no embedding
            of this model.
    """

    rows: np.ndarray
    arrays: list[np.ndarray]
    ages: np.ndarray


@dataclass(frozen=True)
class SourceOptions:
    """How embeddings are come by; the fields of `GCBSTrainingArguments` of the same names.

    Attributes:
        harvest: take them from the training passes.
        first_plan: what there is before any: "encode" or "random".
        max_age: rows embedded longer ago than so many optimizer steps are encoded; None for no row.
        budget: so many rows at most are encoded for a plan; None for no limit.
        dtype: of the stored embeddings.
        folder: for them, which all processes see; None to keep them in memory.
        batch_size: texts a forward pass when encoding.
        show_progress: of encoding.
        view: what is planned on of the outputs of a pass, encoded or harvested.
        collate: makes the features of rows, where the user's collator may change texts; None to encode them as they
            are.
    """

    harvest: bool
    first_plan: str
    max_age: int | None
    budget: int | None
    dtype: str
    folder: Path | None
    batch_size: int
    show_progress: bool
    view: View = sentence_embedding
    collate: Collate | None = None


NOTHING = Fetched(np.zeros(0, np.int64), [], np.zeros(0))


class EmbeddingSource:
    """The embeddings of one call of `train`."""

    def __init__(
        self,
        model: Any,
        parts: Mapping[str, TrainingPart],
        options: SourceOptions,
        *,
        fingerprint: str = "",
        processes: int = 1,
        is_main: bool = True,
        device: torch.device | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Starts watching the model, if rows are to be harvested.

        Args:
            model: that is trained, unwrapped.
            parts: the datasets by name, in the order in which they are concatenated.
            options: how embeddings are come by.
            fingerprint: of the training set.
            processes: of the run.
            is_main: this is the process that plans.
            device: that the processes exchange tensors from.
            autocast: makes the context of a training pass, for encoding.
        """
        self.model, self.parts, self.options = model, dict(parts), options
        self.processes, self.is_main = processes, is_main
        self.autocast = autocast
        self.device = device or torch.device("cpu")
        self.harvests = options.harvest
        self.seconds = 0.0
        self.norms = MeanSquare()
        self.stores: dict[str, EmbeddingStore] = {}
        self._warned: set[str] = set()
        self._harvester: Harvester | None = None
        self._outbox: dict[str, list[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]] = {name: [] for name in parts}
        self._starts = np.cumsum([0, *[len(part.dataset) for part in self.parts.values()]])
        # The processes of one node write to the same files; otherwise their rows are sent to the one that plans.
        self._shares_files = processes > 1 and options.folder is not None
        if not self.harvests:
            return
        for index, (name, part) in enumerate(self.parts.items()):
            if not part.columns:
                continue
            self.stores[name] = EmbeddingStore(
                len(part.dataset),
                len(part.columns),
                make_key(fingerprint, name, part.columns, model, options.view),
                dtype=options.dtype,
                folder=options.folder / str(index) if options.folder is not None else None,
            )
            if is_main:
                self.stores[name].clear()
        wait_for_all(processes)  # nobody writes before the files of an earlier run are gone
        self._harvester = Harvester(model, next(iter(self.parts.values())).column_positions, options.view)

    def close(self) -> None:
        """Stops watching the model and deletes what is stored outside of checkpoints."""
        if self._harvester is not None:
            self._harvester.detach()
        for store in self.stores.values():
            store.close()
            if self.is_main:
                store.clear()

    # ---------------------------------------------------------------- harvest

    @contextmanager
    def watching(self, rows: np.ndarray | None, step: int) -> Iterator[None]:
        """Harvests the rows that pass the model meanwhile.

        Args:
            rows: (B,) ids of the batch's rows in the concatenated datasets, None if they are not known.
            step: optimizer steps taken so far.

        Yields:
            Nothing.
        """
        if self._harvester is None or not self.harvests:
            yield
            return
        if rows is None:
            with self._harvester.watching(None, step):
                yield
        else:
            # A batch is of one dataset, which may be one that is not planned.
            part = list(self.parts.values())[find_dataset(self._starts, rows)]
            with self._harvester.watching(rows if part.columns else None, step, part.column_positions):
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
        for rows, step, arrays, norms in self._harvester.take():
            if len(rows):
                index = find_dataset(self._starts, rows)
                name = list(self.parts)[index]
                self._put(name, rows - self._starts[index], arrays, step)
                store = self.stores[name]
                store.squares += float((norms.astype(np.float64) ** 2).sum())
                store.squares_count += norms.size
        self.seconds += time.perf_counter() - began

    def _put(self, name: str, rows: np.ndarray, arrays: list[np.ndarray], step: int) -> None:
        store = self.stores[name]
        if self.processes == 1 or self._shares_files:
            store.write(rows, arrays, step)
        else:
            self._outbox[name].append((rows, np.full(len(rows), step), arrays))

    def sync(self) -> None:
        """Brings all harvested rows to the process that plans. To be called by all processes."""
        if self._harvester is None or not self.harvests:
            return
        self._store_harvest()
        if self.processes == 1:
            return
        if self._shares_files:
            wait_for_all(self.processes)
            return
        for name, store in self.stores.items():
            rows = [np.zeros(0, np.int64), *[rows for rows, _, _ in self._outbox[name]]]
            steps = [np.zeros(0, np.int64), *[steps for _, steps, _ in self._outbox[name]]]
            arrays = [
                np.concatenate([arrays[column] for _, _, arrays in self._outbox[name]])
                if self._outbox[name]
                else np.zeros((0, 0), np.float32)
                for column in range(store.columns)
            ]
            self._outbox[name] = []
            gathered = [
                gather_rows(one, self.processes, self.device)
                for one in (np.concatenate(rows), np.concatenate(steps), *arrays)
            ]
            if self.is_main and len(gathered[0]):
                latest_last = np.argsort(gathered[1], kind="stable")
                sent = [one[latest_last] for one in gathered]
                store.write(sent[0], sent[2:], sent[1])

    # ---------------------------------------------------------------- what plans are made from

    def fetch(self, name: str, rows: np.ndarray, step: int, *, everything: bool = False) -> Fetched:
        """Returns the rows that there are embeddings of. To be called by all processes.

        Args:
            name: of the dataset.
            rows: (m,) ascending ids of the rows to be planned.
            step: optimizer steps taken so far.
            everything: encode what would be missing otherwise.

        Returns:
            Some of the rows, or all.

        Raises:
            ValueError: see `gcbs_st.embeddings.encode.encode_rows`.
        """
        self.sync()
        if self.harvests and self._harvester is not None:
            hidden = self._harvester.batches > 0 and self._harvester.complete == 0
            if agree(hidden, self.processes):
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
        first = bool((steps == NEVER).all())
        missing, first = agree((self._choose(rows, steps, step, first, everything), first), self.processes)
        if len(missing):
            self._refresh(name, missing, step)
            steps = store.steps() if self.is_main else steps
        if not self.is_main:
            return NOTHING
        seen = rows[steps[rows] != NEVER]
        return Fetched(seen, store.read(seen) if len(seen) else [], step - steps[seen])

    def mean_square_norm(self, name: str) -> float:
        """Returns the mean squared norm of the embeddings, before they were scaled to unit rows; 1 if none was seen.

        Args:
            name: of the dataset.
        """
        if not self.harvests:
            return self.norms.value
        store = self.stores[name]
        return store.squares / store.squares_count if store.squares_count else 1.0

    def _useful(self, name: str, rows: np.ndarray, arrays: list[np.ndarray]) -> np.ndarray:
        """(m,) bool, whether all texts of a row have an embedding; a warning, once, where some have none."""
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
                "example %.120r in row %d. They are trained as ever, but not planned: they fill batches with random rows.",
                int((~useful).sum()),
                len(rows),
                of,
                text,
                rows[row],
            )
        return useful

    def _refuse_diverged(self, name: str, rows: np.ndarray) -> None:
        """Raises, on all processes, where nothing that was harvested can be used."""
        assert self._harvester is not None
        seen, useful = agree((self._harvester.rows_seen, self._harvester.rows_useful), self.processes)
        if seen and not useful:
            part = self.parts[name]
            raise ValueError(no_embeddings(read_columns(part.dataset, rows[:1], [part.columns[0].name])[0][0]))

    def _choose(self, rows: np.ndarray, steps: np.ndarray, step: int, first: bool, everything: bool) -> np.ndarray:
        """The rows to be encoded, on the process that plans: never embedded ones first, then the oldest."""
        if not self.is_main:
            return np.zeros(0, np.int64)
        never, old = steps[rows] == NEVER, np.zeros(len(rows), bool)
        if self.options.max_age is not None and not first:
            old = never | (steps[rows] < step - self.options.max_age)
        chosen = rows[old][np.argsort(steps[rows[old]], kind="stable")][: self.options.budget]
        if everything or self.options.first_plan == "encode":
            chosen = np.union1d(chosen, rows[never])
        return np.sort(chosen)

    def _refresh(self, name: str, rows: np.ndarray, step: int) -> None:
        mine = self._slice(rows)
        with failing_together("embedding", self.processes):
            if len(mine):
                arrays = self._encode_own(name, mine)
                useful = self._useful(name, mine, arrays)
                self._put(name, mine[useful], [array[useful] for array in arrays], step)
        self.sync()

    def _slice(self, rows: np.ndarray) -> np.ndarray:
        """This process's share of the rows."""
        rank = torch.distributed.get_rank() if self.processes > 1 else 0
        return np.array_split(rows, self.processes)[rank]

    def _encode(self, name: str, rows: np.ndarray) -> list[np.ndarray]:
        """One array a column on the process that plans, of rows that all processes have a share in encoding."""
        with failing_together("embedding", self.processes):
            arrays = self._encode_own(name, self._slice(rows))
        if self.processes == 1:
            return arrays
        return [gather_rows(array, self.processes, self.device) for array in arrays]

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

    # ---------------------------------------------------------------- in a checkpoint

    def save(self, folder: Path) -> None:
        """Writes what was harvested into a checkpoint; all processes must have called `sync`.

        Args:
            folder: the checkpoint's.
        """
        if not self.harvests or not self.is_main:
            return
        for index, name in enumerate(self.parts):
            if name in self.stores:
                self.stores[name].save(folder / EMBEDDINGS_FOLDER / str(index))

    def load(self, folder: Path) -> None:
        """Takes what was harvested until a checkpoint; a checkpoint without it is reported, and nothing taken.

        Args:
            folder: the checkpoint's.
        """
        if self.harvests and self.is_main:
            for index, name in enumerate(self.parts):
                if name not in self.stores:
                    continue
                try:
                    self.stores[name].load(folder / EMBEDDINGS_FOLDER / str(index))
                except ValueError as error:
                    logger.warning(
                        "The embeddings in the checkpoint cannot be resumed from: %s. Plans start as in a new run.",
                        error,
                    )
        if self.harvests:
            wait_for_all(self.processes)  # the files are there before anybody writes to them
