"""The embeddings that training computes anyway: taken from its forward passes, under the ids of their rows.

Row ids travel with the data (see `gcbs_st.rows.row_ids`), and each text column's features carry a number for each of
their rows into the model. However the loss merges, sorts or cuts its columns into mini-batches, each embedding comes
out beside the number of its text.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gcbs_st.embeddings.views import View, sentence_embedding

logger = logging.getLogger(__name__)

_CODES_KEY = "gcbs_codes"
# Embeddings are fetched from the device after this many batches: fetching waits for the device.
_PENDING_BATCHES = 8


class Harvester:
    """Takes embeddings out of the training passes of a model, the host's and unwrapped, until `detach`.

    Two hooks: one on the model takes the numbers out of the features before the pass, one on its last module pairs
    them with the embeddings after it, before Matryoshka or the like cuts them. Of a text that passes several times in
    one step (gradient caching, a loss over several depths) the first pass counts. `columns` are the positions of the
    text columns that are wanted.
    """

    def __init__(self, model: nn.Module, columns: Sequence[int], view: View = sentence_embedding) -> None:
        self.columns, self.view = list(columns), view
        self.batches = self.complete = self.rows_seen = self.rows_useful = 0
        self._rows: np.ndarray | None = None
        # Under DataParallel the replicas pass in threads of their own.
        self._thread = threading.local()
        self._passes: list[tuple[Tensor, Tensor]] = []
        self._pending: list[tuple[str, np.ndarray, int, int, list[tuple[Tensor, Tensor]]]] = []
        self._warned = False
        last = list(model.children())[-1]
        self._hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            last.register_forward_hook(self._after),
        ]

    def detach(self) -> None:
        """Stops watching."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextmanager
    def watching(self, name: str, rows: np.ndarray | None, step: int, columns: Sequence[int]) -> Iterator[None]:
        """Takes the embeddings of what passes the model meanwhile.

        `rows` are the batch's (B,) ids in the dataset `name`, None where they are not wanted; `step` is the number of
        optimizer steps taken so far; `columns` are the positions of the text columns that are wanted.
        """
        self._rows, self._passes, self.columns = rows, [], list(columns)
        try:
            yield
        finally:
            if rows is not None:
                self.batches += 1
                self._pending.append((name, rows, step, len(self.columns), self._passes))
            self._rows, self._passes = None, []

    def number(self, features: Sequence[dict[str, Any]]) -> None:
        """Puts a number beside each of the B texts of each text column, if rows are being watched."""
        if self._rows is None:
            return
        size = len(self._rows)
        for place, column in enumerate(features):
            device = next((value.device for value in column.values() if isinstance(value, Tensor)), None)
            codes = torch.full((size,), -1, device=device)
            if place in self.columns:
                codes = torch.arange(size, device=device) + self.columns.index(place) * size
            column[_CODES_KEY] = codes

    @property
    def is_full(self) -> bool:
        """Whether enough batches are waiting for `take`."""
        return len(self._pending) >= _PENDING_BATCHES

    def take(self) -> list[tuple[str, np.ndarray, int, list[np.ndarray], np.ndarray]]:
        """Returns what was harvested since the last call: per batch dataset, row ids, step, arrays, norms.

        The arrays, one per column, are (m, d) float32 of unit rows, the norms (columns, m) what their lengths were. Rows whose
        embedding is zero or not finite are left out, and so are batches whose embeddings were not all seen.
        """
        pending, self._pending = self._pending, []
        taken = []
        for name, rows, step, columns, passes in pending:
            values = self._sort(len(rows), columns, passes)
            if values is None:
                continue
            self.complete += 1
            norms = values.norm(dim=2, keepdim=True)
            useful = (norms.isfinite() & (norms > 0)).all(dim=0).ravel()
            self.rows_seen += len(rows)
            self.rows_useful += int(useful.sum())
            if not useful.all():
                self._warn(f"{int((~useful).sum())} of {len(rows)} rows of a batch embed to zero, NaN or infinity")
                rows, values, norms = rows[useful.numpy()], values[:, useful], norms[:, useful]
            taken.append((name, rows, step, list((values / norms).numpy()), norms.squeeze(2).numpy()))
        return taken

    def _sort(self, size: int, columns: int, passes: list[tuple[Tensor, Tensor]]) -> Tensor | None:
        """Returns (columns, B, d) float32 on the CPU, in the order of the rows; None if a text was not seen."""
        if not passes:
            return None
        codes = torch.cat([codes for codes, _ in passes]).cpu().numpy()
        values = torch.cat([embeddings for _, embeddings in passes]).float().cpu()
        found, first = np.unique(codes, return_index=True)
        wanted = found >= 0
        if wanted.sum() != size * columns:
            return None
        return values[torch.from_numpy(first[wanted])].reshape(columns, size, -1)

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s; they keep the embeddings of an earlier step, or stay unplanned.", message)

    # A compiled model must not take these into its graph: what they do is not computation.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = args[0] if args else kwargs.get("input")
        # Taken out: the model would hand what it does not know on to a transformer that takes any argument.
        self._thread.codes = features.pop(_CODES_KEY, None) if isinstance(features, dict) else None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        codes, self._thread.codes = getattr(self._thread, "codes", None), None
        if self._rows is None or codes is None or not isinstance(output, Mapping):
            return
        with torch.no_grad():
            embeddings = self.view(output)
        if embeddings is None or len(codes) != len(embeddings):
            return
        # A copy: the embedding may be a view into the outputs of all tokens, or be changed in place later.
        self._passes.append((codes, embeddings.detach().clone()))
