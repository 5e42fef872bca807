"""The rows that were harvested from training, as the process that plans sees them: their latest embeddings and ages.

In: the training passes of every process, and rows to be encoded where none passed lately. Out: unit rows by their ids.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from gcbs_st.embeddings.encode import no_embeddings
from gcbs_st.embeddings.harvest import Harvester
from gcbs_st.embeddings.row_encoder import RowEncoder
from gcbs_st.embeddings.store import NEVER, EmbeddingStore, make_key
from gcbs_st.ranks import agree, failing_together, gather_rows, wait_for_all
from gcbs_st.rows.columns import read_columns

logger = logging.getLogger(__name__)

EMBEDDINGS_FOLDER = "gcbs_embeddings"


class HarvestedRows:
    """An `EmbeddingStore` per dataset that is planned, filled by a `Harvester` of the model, until `close`.

    `encoder` knows model, datasets and ranks, and encodes what training has not shown; `fingerprint` is that of the
    training set, which another one must not be mixed up with.
    """

    def __init__(self, encoder: RowEncoder, fingerprint: str = "") -> None:
        self.encoder, self.parts, self.options = encoder, encoder.parts, encoder.options
        self.ranks, self.is_main = encoder.ranks, encoder.is_main
        self.stores: dict[str, EmbeddingStore] = {}
        # Rows, steps and one array per column, until `sync` sends them to the process that plans.
        self._outbox: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in self.parts}
        folder = self.options.folder
        # The ranks of one node write to the same files; otherwise their rows are sent to the one that plans.
        self._shares_files = self.ranks > 1 and folder is not None
        for index, (name, part) in enumerate(self.parts.items()):
            if not part.columns:
                continue
            key = make_key(fingerprint, name, part.columns, encoder.model, self.options.view)
            own = folder / str(index) if folder is not None else None
            rows, columns = len(part.dataset), len(part.columns)
            self.stores[name] = EmbeddingStore(rows, columns, key, dtype=self.options.dtype, folder=own)
            if self.is_main:
                self.stores[name].clear()
        wait_for_all(self.ranks)  # nobody writes before the files of an earlier run are gone
        positions = next(iter(self.parts.values())).column_positions
        self.harvester = Harvester(encoder.model, positions, self.options.view)

    def close(self) -> None:
        """Stops watching the model and deletes what is stored outside of checkpoints."""
        self.harvester.detach()
        for store in self.stores.values():
            store.close()
            if self.is_main:
                store.clear()

    def watching(self, name: str, rows: np.ndarray, step: int) -> AbstractContextManager[None]:
        """See `EmbeddingSource.watching`."""
        part = self.parts[name]
        return self.harvester.watching(name, rows if part.columns else None, step, part.column_positions)

    def store(self) -> None:
        """Takes what the harvester holds."""
        for name, rows, step, arrays, norms in self.harvester.take():
            if len(rows):
                self._put(name, rows, arrays, step)
                store = self.stores[name]
                store.squares += float((norms.astype(np.float64) ** 2).sum())
                store.squares_count += norms.size

    def _put(self, name: str, rows: np.ndarray, arrays: list[np.ndarray], step: int) -> None:
        if self.ranks == 1 or self._shares_files:
            self.stores[name].write(rows, arrays, step)
        else:
            self._outbox[name].append((rows, np.full(len(rows), step), *arrays))

    def sync(self) -> None:
        """Brings all harvested rows to the process that plans. To be called by all ranks."""
        self.store()
        if self.ranks == 1 or self._shares_files:
            wait_for_all(self.ranks)
            return
        for name, store in self.stores.items():
            no_arrays = [np.zeros((0, 0), np.float32)] * store.columns
            own = self._outbox[name] or [(np.zeros(0, np.int64), np.zeros(0, np.int64), *no_arrays)]
            self._outbox[name] = []
            joined = (np.concatenate(parts) for parts in zip(*own, strict=True))
            rows, steps, *arrays = (gather_rows(one, self.ranks, self.encoder.device) for one in joined)
            if self.is_main and len(rows):
                latest_last = np.argsort(steps, kind="stable")
                store.write(rows[latest_last], [array[latest_last] for array in arrays], steps[latest_last])

    @property
    def sees_nothing(self) -> bool:
        """Whether batches were trained and none of them showed its embeddings, on this process."""
        return self.harvester.batches > 0 and self.harvester.complete == 0

    def fetch(
        self, name: str, rows: np.ndarray, step: int, *, everything: bool
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Returns those of the (m,) ascending rows that there are embeddings of, the arrays, and the rows' ages.

        The arguments are those of `EmbeddingSource.fetch`. To be called by all ranks, after `sync`; on all but the main
        process the result is empty. Raises a ValueError where nothing that training has shown can be used.
        """
        self._refuse_diverged(name, rows)
        store = self.stores[name]
        steps = store.steps() if self.is_main else np.zeros(0, np.int64)
        missing = agree(self._choose(rows, steps, step, everything), self.ranks)
        if len(missing):
            self._refresh(name, missing, step)
            steps = store.steps() if self.is_main else steps
        if not self.is_main:
            return np.zeros(0, np.int64), [], np.zeros(0)
        seen = rows[steps[rows] != NEVER]
        return seen, store.read(seen) if len(seen) else [], step - steps[seen]

    def _refuse_diverged(self, name: str, rows: np.ndarray) -> None:
        """Raises, on all ranks, where nothing that was harvested can be used."""
        seen, useful = agree((self.harvester.rows_seen, self.harvester.rows_useful), self.ranks)
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
        mine = self.encoder.share_of(rows)
        with failing_together("embedding", self.ranks):
            if len(mine):
                arrays = self.encoder.encode_own(name, mine)
                useful = self.encoder.useful(name, mine, arrays)
                self._put(name, mine[useful], [array[useful] for array in arrays], step)
        self.sync()

    def mean_square_norm(self, name: str) -> float:
        """Returns the mean squared norm of a dataset's embeddings before they became unit rows; 1 without any."""
        store = self.stores[name]
        return store.squares / store.squares_count if store.squares_count else 1.0

    def save(self, folder: Path) -> None:
        """Writes what was harvested into the folder of a checkpoint; all ranks must have called `sync`."""
        if self.is_main:
            for name, place in self._places_in(folder).items():
                self.stores[name].save(place)

    def load(self, folder: Path) -> None:
        """Takes what was harvested until a checkpoint; one without it is reported, and nothing taken."""
        if self.is_main:
            for name, place in self._places_in(folder).items():
                try:
                    self.stores[name].load(place)
                except ValueError as error:
                    logger.warning(
                        "The embeddings in the checkpoint cannot be resumed from: %s. Plans start as in a new run.",
                        error,
                    )
        wait_for_all(self.ranks)  # the files are there before anybody writes to them

    def _places_in(self, checkpoint: Path) -> dict[str, Path]:
        places = {name: checkpoint / EMBEDDINGS_FOLDER / str(index) for index, name in enumerate(self.parts)}
        return {name: places[name] for name in self.stores}
