"""EMC2: the gradient of the global contrastive loss from batches of any size, by one Markov chain per row.

The negatives that matter are rarely in a small batch. A chain keeps the one it has found until a better one comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import util
from torch import Tensor

from gcbs_st.losses.row_loss import FeaturesOf, RowLoss

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_NOBODY = -1
# Share of a visit's proposals that give no samples. The authors' value; at least one proposal always gives one.
_BURN_IN = 0.5


@dataclass(frozen=True)
class _Draw:
    """The negatives that a batch's chains have sampled."""

    inside: Tensor  # (b, b) share of each row's samples that are the batch's j-th doc
    outside: Tensor  # (b,) share of its samples that are the row its chain came with, which is not in the batch
    came_with: np.ndarray  # (b,) that row's id; below 0 for a chain on its first visit
    position: Tensor  # (b,) where that row is among the rows of `features`; 0 where `outside` is 0
    features: dict[str, Any] | None  # of the rows to be encoded, each once; None if there are none


class EMC2Loss(RowLoss):
    r"""The global contrastive loss by Markov chain Monte Carlo (EMC2), for any batch size.

    With b = `scale`, the loss of each row is that against ALL negatives z of the training set::

        L = mean over rows (x, y) of  -log( exp(b x.y) / sum_z exp(b x.z) )
        grad L = mean of  -b grad(x.y) + b E_{z ~ p_x} grad(x.z),   p_x(z) proportional to exp(b x.z)

    Each row has a Metropolis-Hastings chain whose states are other rows' positives and whose distribution is p_x. It
    is kept from visit to visit and over epochs. In a batch of B rows the chain of row i is proposed the positives of
    the rows i+1, ..., B, 1, ..., i-1 of the batch, in this order, and moves from z to z' with probability min(1, exp(b
    x.z') / exp(b x.z)); a row's very first proposal is always accepted. x.z is the score that z had when it was
    accepted. The second half of the proposals each give the chain's current state as a sample. A sample that is not in
    the batch, since its chain has rejected all proposals so far, is encoded again, with gradient. The returned value
    is ``b * mean(x.z over samples) - b * mean(x.y)``: its gradient is an estimate of grad L, but the value itself is
    no loss to compare (it has no logarithm, and is negative for a good model). Evaluation returns the in-batch loss.

    The negatives of a row are the positives of all other rows, not its own; equal texts in other rows count. With a
    loss of both directions each row has two chains.

    Cost: O(B^2) beside the similarities that any in-batch loss computes, 20 bytes per row, 12 more for a second
    direction, and one more pass through the model, of at most B texts per direction. Chains live on the CPU.

    Args:
        model: the model to train.
        scale: b, what cosines are multiplied with, 1 / temperature. The authors use 14.28.
        mix: the loss is ``(1 - mix) * EMC2 + mix * in-batch InfoNCE``, in [0, 1].
        directions: "query_to_doc", "doc_to_query" or both, of which the mean is taken.
        rows: n, the rows of the training set. None: from the trainer, or states grow with the ids that come.
        seed: of the chains; None takes that of the run, or 0.

    Raises:
        ValueError: an option out of its range.

    References:
        - EMC2, ICML 2024: https://huggingface.co/papers/2404.10575

    Requirements:
        (anchor, positive) pairs without negatives, the row ids of each batch and a way to get at texts: from
        `GCBSTrainer`, or see `RowLoss` and `RowLoss.prepare`. Several epochs: after k visits a chain has seen what k
        batches have proposed to it.

    Recommendations:
        - Chains converge to p_x where batches are random. A planner that brings neighbours together proposes near
          negatives more often, and a chain then samples p_x times the chance of being proposed.
        - Compare with :class:`SogCLRLoss` of ``gamma=1``, the in-batch loss without the positive in its
          denominator: that alone may be much of the difference to the in-batch loss, and costs no pass.

    Relations:
        - :class:`SogCLRLoss` approaches the same loss by one denominator per row, from the batch's negatives alone.
        - There is no gradient-cached form: batches have to fit into memory, which is what this loss is for.
        - In MatryoshkaLoss chains follow the full dimensionality, and all smaller ones take its samples.
        - Under DDP each process moves the chains of the rows it draws, and all take each row's newest state at
          checkpoints: how often a run saves is part of what it computes. Processes make the same passes only if all of
          them draw a batch of this loss in the same step: do not use another loss for another dataset there.

    Example:
        >>> model = torch.nn.Identity()  # a SentenceTransformer
        >>> loss = EMC2Loss(model, rows=100)
        >>> anchors, positives = torch.eye(3), torch.eye(3)
        >>> float(loss.compute_loss_from_embeddings([anchors, positives], None, row_ids=[7, 30, 2]))
        -20.0
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        *,
        mix: float = 0.0,
        directions: Sequence[str] = ("query_to_doc",),
        rows: int | None = None,
        seed: int | None = None,
    ) -> None:
        kinds: dict[str, tuple[Any, float]] = {"state": (np.int64, _NOBODY), "score": (np.float32, -np.inf)}
        fields = {f"{direction} {name}": kind for direction in directions for name, kind in kinds.items()}
        super().__init__(model, scale, fields, directions, rows)
        if not 0 <= mix <= 1:
            raise ValueError(f"mix: got {mix}, expected a share in [0, 1].")
        self.mix, self.seed, self._run_seed = mix, seed, seed or 0

    def prepare(self, rows: int, features_of: FeaturesOf | None = None, seed: int | None = None) -> None:
        """See `RowLoss.prepare`; the run's seed becomes that of the chains if they have none of their own."""
        super().prepare(rows, features_of, seed)
        if self.seed is None:
            self._run_seed = seed or 0

    def row_loss(self, direction: str, ids: np.ndarray, queries: Tensor, docs: Tensor, scores: Tensor) -> Tensor:
        """Returns the surrogate of one direction, see `RowLoss.row_loss`."""
        del docs
        if direction not in self._drawn:
            self._drawn[direction] = self._draw(direction, ids, scores.detach())
        drawn: _Draw = self._drawn[direction]
        sampled = (drawn.inside * scores).sum(1)
        if drawn.features is not None:
            stored = self.encode(drawn.features)[drawn.position]
            sampled = sampled + drawn.outside * (self.scale * util.pairwise_cos_sim(queries, stored))
        # The only row of a batch has no samples, and so nothing to hold its positive's pull in balance.
        return (sampled - scores.diagonal() * (len(ids) > 1)).sum() / max(1, len(ids))

    def finish(self, loss: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
        """Returns the loss with the in-batch loss mixed in."""
        return (1 - self.mix) * loss + self.mix * self.in_batch_loss(scores) if self.mix else loss

    def last_samples(self, direction: str = "query_to_doc") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what the chains have sampled in the batch that `set_rows` was called with; for measurements.

        (b, b) shares of each row's samples that are the batch's j-th row, (b,) shares that are the row its chain came
        with from outside of the batch, and (b,) that row's id, which means nothing where the share is 0.

        Raises a ValueError if no batch was drawn since `set_rows`.
        """
        if (drawn := self._drawn.get(direction)) is None:
            raise ValueError(
                f"last_samples: got no draw of {direction!r}; call set_rows and then the loss, in training mode."
            )
        return drawn.inside.cpu().numpy(), drawn.outside.cpu().numpy(), drawn.came_with

    def _draw(self, direction: str, ids: np.ndarray, scores: Tensor) -> _Draw:
        """Moves the chains of the batch's rows and returns what they have sampled."""
        size = len(ids)
        states, stored = self._state[f"{direction} state"], self._state[f"{direction} score"]
        came_with = states[ids]
        matrix, slot = scores.float().cpu().numpy(), _places_in_batch(came_with, ids)
        slots, score = self._move(matrix, slot, stored[ids], self._generator(direction))
        if size > 1:
            last = slots[:, -1]
            states[ids] = np.where(last < size, ids[np.minimum(last, size - 1)], came_with)
            stored[ids] = score
        samples = slots[:, int(_BURN_IN * (size - 1)) :]
        shares = np.zeros((size, size + 1))
        np.add.at(shares, (np.arange(size)[:, None], samples), 1.0)
        shares /= max(1, samples.shape[1])
        position, features = self._texts_of(direction, came_with, shares[:, size] > 0, ids)
        places = torch.from_numpy(position).to(scores.device)
        # In half precision shares would not sum to 1.
        weights = torch.from_numpy(shares).to(scores.device, torch.promote_types(scores.dtype, torch.float32))
        return _Draw(weights[:, :size], weights[:, size], came_with, places, features)

    def _move(
        self, scores: np.ndarray, slot: np.ndarray, score: np.ndarray, generator: torch.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns where each chain was after each proposal, (b, b - 1) slots, and (b,) scores of the last ones.

        Slots 0 to b-1 are the batch's docs, b is the state that a chain came with if that is not among them.
        """
        size = len(slot)
        proposals = (np.arange(size)[:, None] + np.arange(1, size)) % size
        proposed = np.take_along_axis(scores, proposals, axis=1)
        log_chance = torch.rand(proposals.shape, generator=generator, dtype=torch.float64).log().numpy()
        slots = np.empty_like(proposals)
        for step in range(size - 1):
            accepted = log_chance[:, step] < proposed[:, step] - score
            slot = np.where(accepted, proposals[:, step], slot)
            score = np.where(accepted, proposed[:, step], score)
            slots[:, step] = slot
        return slots, score

    def _texts_of(
        self, direction: str, states: np.ndarray, wanted: np.ndarray, ids: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any] | None]:
        """Returns where each wanted state is among the features that are returned too, of each row once."""
        position = np.zeros(len(states), np.int64)
        rows, position[wanted] = np.unique(states[wanted], return_inverse=True)
        if not len(rows) and torch.distributed.is_available() and torch.distributed.is_initialized():
            # DDP's passes are collective: a process that needs none joins those of the others, with weight 0.
            rows = ids[:1]
        return position, self.features_of(direction, rows) if len(rows) else None

    def _generator(self, direction: str) -> torch.Generator:
        """Returns a visit's generator: it needs no state in checkpoints, and processes draw different numbers."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        key = [self._run_seed, rank, self._clock, self.directions.index(direction)]
        seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)
        return torch.Generator().manual_seed(int(seed))

    def get_config_dict(self) -> dict[str, Any]:
        """Returns the options, for the model card."""
        return {**super().get_config_dict(), "mix": self.mix}

    @property
    def citation(self) -> str:
        """BibTeX of the paper."""
        return """
@inproceedings{yau2024emc2,
    title={{EMC2}: Efficient {MCMC} Negative Sampling for Contrastive Learning with Global Convergence},
    author={Chung-Yiu Yau and Hoi-To Wai and Parameswaran Raman and Soumajyoti Sarkar and Mingyi Hong},
    booktitle={International Conference on Machine Learning},
    year={2024},
    eprint={2404.10575},
    archivePrefix={arXiv}
}
"""


def _places_in_batch(states: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns (b,) places of the states among the batch's rows, b for those that are not there."""
    order = np.argsort(ids)
    found = np.minimum(np.searchsorted(ids, states, sorter=order), len(ids) - 1)
    return np.where(ids[order[found]] == states, order[found], len(ids))
