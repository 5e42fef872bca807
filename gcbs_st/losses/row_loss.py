"""What losses with a state for each row share: the ids of a batch's rows, the states, and how they are saved.

A batch shows a row few of its negatives; what earlier batches showed of the others has to be kept somewhere. States
are NumPy arrays on the CPU. They are no buffers: a loss is moved to the device of its model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from sentence_transformers import util
from torch import Tensor, nn

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# The features of some rows of one text column (0 anchors, 1 positives), on the model's device.
FeaturesOf = Callable[[np.ndarray, int], dict[str, Any]]

DIRECTIONS = ("query_to_doc", "doc_to_query")


class RowLoss(nn.Module, ABC):
    """A loss of (anchor, positive) pairs that keeps a state for each row of the training set.

    In training mode it has to know which rows a batch holds. `GCBSTrainer` tells it. In a loop of your own pass
    `row_ids` with the batch or, where the loss is wrapped, call `set_rows` before each batch. The state advances once
    per call. What a wrapper asks for beyond that (the smaller dimensionalities of MatryoshkaLoss) is answered with
    what the first call, that of the full dimensionality, has drawn.

    In evaluation mode (`model.training` is False) states are neither read nor written, no ids are needed, and the
    result is the in-batch loss: exactly the host's MultipleNegativesRankingLoss, or for both directions its symmetric
    form.

    Args:
        model: the model to train.
        scale: what cosines are multiplied with, 1 / temperature.
        fields: name -> (dtype, value of a row that was never visited).
        directions: "query_to_doc", "doc_to_query" or both; the loss is their mean.
        rows: n, the rows of the training set; None to take it from the trainer, or to grow with the ids that come.

    Raises:
        ValueError: `scale` not above 0, `rows` below 1, or unknown directions.
    """

    # Whether `encode` is called for other rows than those of the batch. FSDP and ZeRO-3 take only losses that say no.
    embeds_rows: ClassVar[bool] = True

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float,
        fields: Mapping[str, tuple[Any, float]],
        directions: Sequence[str] = ("query_to_doc",),
        rows: int | None = None,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale: got {scale}, expected a number above 0.")
        if not directions or len({*directions}) != len(directions) or not {*directions} <= {*DIRECTIONS}:
            raise ValueError(f"directions: got {directions!r}, expected one or both of {DIRECTIONS}.")
        if rows is not None and rows < 1:
            raise ValueError(f"rows: got {rows}, expected the number of rows of the training set, at least 1.")
        self.model, self.scale, self.rows = model, scale, rows
        self.directions = tuple(one for one in DIRECTIONS if one in directions)
        # Of the newest visit, counted in batches: which of several processes' states is the newest.
        self._fields = {"visited": (np.int64, 0.0), **fields}
        self._state = {name: np.full(rows or 0, fill, dtype) for name, (dtype, fill) in self._fields.items()}
        self._clock = 0
        self._features_of: FeaturesOf | None = None
        self._ids: np.ndarray | None = None
        self._drawn: dict[str, Any] = {}

    def prepare(self, rows: int, features_of: FeaturesOf | None = None, seed: int | None = None) -> None:
        """Says how many rows there are and how to get at their texts; `GCBSTrainer` calls it before training.

        `features_of` takes (m,) row ids and the position of a text column (0 anchors, 1 positives), and returns the
        features of these texts as the model takes them; `seed` is that of the run, for losses that draw numbers and
        have no seed of their own. Raises a ValueError if this loss holds the states of another number of rows.
        """
        del seed
        held = self._held()
        if held > rows or (self.rows is not None and held != rows):
            raise ValueError(
                f"{type(self).__name__}: it holds the states of {held} rows, but the training set has {rows}. "
                "Make a new loss for another training set."
            )
        self.rows, self._features_of = rows, features_of
        self._state = {name: array[:rows] for name, array in self._state.items()}
        self._grow(rows)

    def set_rows(self, row_ids: Sequence[int] | np.ndarray | Tensor | None) -> None:
        """Says which rows the next batch holds; until the next call all batches count as this one.

        These are (b,) distinct ids in 0..n-1, in the order of the batch, or None for no batch; others raise a
        ValueError.
        """
        self._drawn, self._ids = {}, None
        if row_ids is None:
            return
        given = row_ids.cpu().numpy() if isinstance(row_ids, Tensor) else np.asarray(row_ids)
        ids = given.astype(np.int64).ravel()
        if len(np.unique(ids)) != len(ids):
            raise ValueError(f"row_ids: got {ids.tolist()}, expected each row once in a batch.")
        if len(ids) and (ids.min() < 0 or (self.rows is not None and ids.max() >= self.rows)):
            below = f"below {self.rows}" if self.rows is not None else "of at least 0"
            raise ValueError(f"row_ids: got {ids.min()} to {ids.max()}, expected ids {below}.")
        self._grow(int(ids.max(initial=-1)) + 1)
        self._ids = ids

    def _held(self) -> int:
        """Returns how many rows there are states of; while n is unknown, those up to the last one visited."""
        if self.rows is not None:
            return self.rows
        visited = np.flatnonzero(self._state["visited"])
        return int(visited[-1]) + 1 if len(visited) else 0

    def _grow(self, rows: int) -> None:
        held = len(self._state["visited"])
        if rows <= held:
            return
        # Where the end is not known, space for as many rows again, so that n rows are copied O(log n) times.
        more = (rows if self.rows is not None else max(rows, 2 * held)) - held
        for name, (dtype, fill) in self._fields.items():
            self._state[name] = np.concatenate([self._state[name], np.full(more, fill, dtype)])

    def forward(
        self,
        sentence_features: Iterable[dict[str, Tensor]],
        labels: Tensor | None = None,
        row_ids: Sequence[int] | np.ndarray | Tensor | None = None,
    ) -> Tensor:
        """Returns the loss of a batch, a scalar with gradient; see `compute_loss_from_embeddings` for `row_ids`."""
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels, row_ids)

    def compute_loss_from_embeddings(
        self,
        embeddings: list[Tensor],
        labels: Tensor | None = None,
        row_ids: Sequence[int] | np.ndarray | Tensor | None = None,
    ) -> Tensor:
        """Returns the loss of (b, d) anchors and (b, d) positives, a scalar with gradient; labels are not used.

        `row_ids` are the (b,) ids of the rows, for this batch alone; None after `set_rows`. Raises a ValueError for
        other than two text columns, row ids that are missing or do not fit, or scores that are NaN or infinite.
        """
        if len(embeddings) != 2:
            raise ValueError(
                f"{type(self).__name__}: got {len(embeddings)} text columns, expected anchors and positives alone. "
                "Drop the columns of negatives; the negatives of a row are the other rows' positives."
            )
        by_direction = {"query_to_doc": embeddings, "doc_to_query": embeddings[::-1]}
        scores = {name: util.cos_sim(*by_direction[name]) * self.scale for name in self.directions}
        if not self.model.training:
            return self.in_batch_loss(scores)
        if row_ids is not None:
            self.set_rows(row_ids)
        try:
            ids = self._known_ids(len(embeddings[0]))
            self._refuse_nan(next(iter(scores.values())))
            if not self._drawn:
                self._clock += 1
            losses = [
                self.row_loss(name, ids, queries, docs, scores[name])
                for name, (queries, docs) in by_direction.items()
                if name in self.directions
            ]
            self._state["visited"][ids] = self._clock
            return self.finish(torch.stack(losses).mean(), scores)
        finally:
            if row_ids is not None:
                self.set_rows(None)

    @abstractmethod
    def row_loss(self, direction: str, ids: np.ndarray, queries: Tensor, docs: Tensor, scores: Tensor) -> Tensor:
        """Returns the loss of one direction, a scalar with gradient.

        Row i of the (b, d) `docs` is the positive of row i of the (b, d) `queries`; `ids` are the (b,) row ids,
        `scores` (b, b) `scale` times the cosines. Draws go into `_drawn[direction]`; what is already there is used.
        """

    def finish(self, loss: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
        """Returns the loss of the batch from the mean of the directions; for losses that add something to it."""
        del scores
        return loss

    def in_batch_loss(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Returns the mean InfoNCE loss of the directions' (b, b) scores, which have the positives on the diagonal."""
        targets = torch.arange(len(next(iter(scores.values()))), device=next(iter(scores.values())).device)
        return torch.stack([nn.functional.cross_entropy(one, targets) for one in scores.values()]).mean()

    def encode(self, features: Mapping[str, Any]) -> Tensor:
        """Returns (m, d) embeddings. From a copy: the pass may change its features, which may be needed again."""
        embedded: Tensor = self.model(dict(features))["sentence_embedding"]
        return embedded

    def features_of(self, direction: str, rows: np.ndarray) -> dict[str, Any]:
        """Returns the features of the docs of a direction in (m,) rows.

        Raises a ValueError where nobody has said how to get at the texts, see `prepare`.
        """
        if self._features_of is None:
            raise ValueError(
                f"{type(self).__name__}: the texts of stored rows are needed, but nobody has told how to get at them. "
                "Train with GCBSTrainer, or call prepare(rows, features_of) before training."
            )
        return self._features_of(rows, 1 if direction == "query_to_doc" else 0)

    def _known_ids(self, size: int) -> np.ndarray:
        if self._ids is None:
            raise ValueError(
                f"{type(self).__name__}: it does not know which rows are in the batch. Train with GCBSTrainer, pass "
                "row_ids, or call set_rows before each batch."
            )
        if len(self._ids) != size:
            raise ValueError(f"row_ids: got {len(self._ids)} ids for a batch of {size} rows, expected one per row.")
        return self._ids

    def _refuse_nan(self, scores: Tensor) -> None:
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(
                f"{type(self).__name__}: {int((~torch.isfinite(scores)).sum())} of {scores.numel()} scores of a batch "
                "are NaN or infinite, so that the states of its rows would be lost. Lower the learning rate or clip "
                "gradients; half precision may also overflow."
            )

    def row_state(self) -> dict[str, np.ndarray]:
        """Returns a copy of the states: (n,) arrays by name, and `clock`, the number of batches visited."""
        held = self._held()
        return {**{name: array[:held].copy() for name, array in self._state.items()}, "clock": np.array(self._clock)}

    def load_row_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores what `row_state` returned for a loss with the same options and training set.

        Raises a ValueError if it is of another number of rows, or of a loss with other states.
        """
        if {*state} != {*self._state, "clock"}:
            raise ValueError(
                f"{type(self).__name__}: got a state with {sorted(state)}, expected "
                f"{sorted([*self._state, 'clock'])}. It was saved with another loss or other directions; resume with "
                "those, or start anew."
            )
        got = len(state["visited"])
        if self.rows is not None and got != self.rows:
            raise ValueError(
                f"{type(self).__name__}: got the states of {got} rows, expected those of {self.rows}, the rows of the "
                "training set. Resume with the training set that they were saved with, or start anew."
            )
        self._state = {name: np.array(state[name], dtype) for name, (dtype, _) in self._fields.items()}
        self._clock = int(state["clock"])
        self.set_rows(None)

    def get_config_dict(self) -> dict[str, Any]:
        """Returns the options, for the model card."""
        return {"scale": self.scale, "directions": self.directions}
