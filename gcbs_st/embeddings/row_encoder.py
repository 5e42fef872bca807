"""Encodes rows of the training set by a model that stands still meanwhile, each process its share of them.

In: row ids of a dataset, and a model. Out: one array of unit rows per text column, on the process that plans.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from gcbs_st.embeddings.encode import MeanSquare, encode_collated, encode_rows
from gcbs_st.embeddings.fixed import Embedder
from gcbs_st.embeddings.source_options import SourceOptions
from gcbs_st.ranks import failing_together, gather_rows
from gcbs_st.rows.columns import read_columns
from gcbs_st.rows.training_set import TrainingPart

logger = logging.getLogger(__name__)


class RowEncoder:
    """Encodes rows of `parts`, datasets by name, by `model` as it is or by a model that does not train.

    `model` is unwrapped; `is_main` is true of the process that plans; `device` is what the ranks exchange tensors
    from; `autocast` makes the context of a training pass. `norms` are those of the embeddings since they were last
    started anew.
    """

    def __init__(
        self,
        model: Any,
        parts: dict[str, TrainingPart],
        options: SourceOptions,
        *,
        ranks: int = 1,
        is_main: bool = True,
        device: torch.device | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.parts, self.options, self.autocast = model, parts, options, autocast
        self.ranks, self.is_main, self.device = ranks, is_main, device or torch.device("cpu")
        self.norms = MeanSquare()
        self._warned: set[str] = set()

    def share_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns this process's share of the rows."""
        rank = torch.distributed.get_rank() if self.ranks > 1 else 0
        return np.array_split(rows, self.ranks)[rank]

    def encode(self, name: str, rows: np.ndarray, embedder: Embedder | None = None) -> list[np.ndarray]:
        """Returns one (m, d) array per column on the process that plans; `norms` are then those of these rows.

        To be called by all ranks, with the same (m,) rows: each encodes its share.
        """
        self.norms = MeanSquare()
        with failing_together("embedding", self.ranks):
            arrays = self.encode_own(name, self.share_of(rows), embedder)
        if self.ranks == 1:
            return arrays
        return [gather_rows(array, self.ranks, self.device) for array in arrays]

    def encode_own(self, name: str, rows: np.ndarray, embedder: Embedder | None = None) -> list[np.ndarray]:
        """Returns one (m, d) array per column of the (m,) rows, which this process alone encodes.

        `embedder` is a model that does not train; None stands for the model as it is. Raises a ValueError where that
        one is spread over processes, and as `gcbs_st.embeddings.encode.encode_rows` does.
        """
        part, options = self.parts[name], self.options
        if embedder is None:
            if not options.encodes:  # what asks for it is refused before training; a pass would never end
                raise ValueError("rows are to be encoded by a model that no process holds whole.")
            embedder = Embedder(self.model, {name: part.columns}, options.view, options.collate)
        columns = embedder.columns[name]
        if not len(rows):
            return [np.zeros((0, 0), np.float32) for _ in columns]
        passes: dict[str, Any] = {
            "batch_size": options.batch_size,
            "progress": f"planning {name}".strip() if options.show_progress and self.is_main else None,
            "autocast": self.autocast,
            "view": embedder.view,
            "norms": self.norms,
        }
        if embedder.collate is None:
            return encode_rows(embedder.model, part.dataset, rows, columns, **passes)
        return encode_collated(
            embedder.model, part.dataset, rows, columns, part.column_positions, embedder.collate, **passes
        )

    def useful(self, name: str, rows: np.ndarray, arrays: list[np.ndarray]) -> np.ndarray:
        """Returns (m,) bool, whether all texts of a row have an embedding; warns, once, where some have none."""
        with_text = np.stack([array.any(axis=1) for array in arrays])
        useful = np.asarray(with_text.all(axis=0))
        if not useful.all():
            row = np.flatnonzero(~useful)[0]
            column = int(np.flatnonzero(~with_text[:, row])[0])
            self.warn_useless(name, rows[~useful], len(rows), self.parts[name].columns[column].name)
        return useful

    def warn_useless(self, name: str, rows: np.ndarray, count: int, column: str) -> None:
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
