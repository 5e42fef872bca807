"""SogCLR: the global contrastive loss by one moving average per row, the denominator of its softmax.

The baseline that EMC2 is measured against; it costs nothing beside the in-batch loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gcbs_st.losses.row_loss import RowLoss

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class SogCLRLoss(RowLoss):
    r"""The global contrastive loss with a moving average of each row's denominator (SogCLR).

    With s_ij = `scale` * cosine of anchor i and positive j, a visit of row i in a batch of B rows updates::

        u_i <- (1 - gamma) u_i + gamma * mean over j != i of exp(s_ij)      (the first visit sets it)
        surrogate_i = mean over j != i of [exp(s_ij) / u_i] s_ij - s_ii,    [.] without gradient

    All of it in log space. The weights of a row sum to at most 1 / gamma: to less than 1 in a batch whose negatives
    are easier than those that the row has met before, to more in a harder one. (In the in-batch loss they always sum
    to the same.) The value itself is no loss to compare; evaluation returns the in-batch loss. It takes (anchor,
    positive) pairs and the row ids of each batch: from `GCBSTrainer`, or see `RowLoss`. Cost: nothing beside the
    in-batch loss; 12 bytes per row, 4 more for a second direction.

    Args:
        model: the model to train.
        scale: what cosines are multiplied with, 1 / temperature.
        gamma: share of the newest batch in the average, in (0, 1]; with 1 there is no memory, and the gradient is that
            of the in-batch loss without the positive in its denominator.
        directions: "query_to_doc", "doc_to_query" or both, of which the mean is taken.
        rows: n, the rows of the training set. None: from the trainer, or states grow with the ids that come.

    Raises:
        ValueError: an option out of its range.

    References:
        - SogCLR, ICML 2022: https://huggingface.co/papers/2202.12387

    Relations:
        - :class:`EMC2Loss` has no such average, and its negatives are not only those of the batch.
        - In MatryoshkaLoss the full dimensionality's weights are those of all. There is no gradient-cached form.
        - Under DDP each process updates the rows it draws, and all take the newest states at checkpoints.

    Example:
        >>> loss = SogCLRLoss(torch.nn.Identity(), scale=1.0)  # a SentenceTransformer
        >>> rows = torch.eye(2)
        >>> float(loss.compute_loss_from_embeddings([rows, rows], None, row_ids=[0, 1]))
        -1.0
    """

    embeds_rows = False

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        *,
        gamma: float = 0.9,
        directions: Sequence[str] = ("query_to_doc",),
        rows: int | None = None,
    ) -> None:
        fields = {f"{direction} log u": (np.float32, -np.inf) for direction in directions}
        super().__init__(model, scale, fields, directions, rows)
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma: got {gamma}, expected a share of the newest batch in (0, 1].")
        self.gamma = gamma

    def row_loss(self, direction: str, ids: np.ndarray, queries: Tensor, docs: Tensor, scores: Tensor) -> Tensor:
        """Returns the surrogate of one direction, see `RowLoss.row_loss`."""
        del queries, docs
        size = len(ids)
        if size == 1:
            return scores.sum() * 0.0  # no negatives, and so nothing to hold the positive's pull in balance
        if direction not in self._drawn:
            self._drawn[direction] = self._weigh(direction, ids, scores.detach())
        return (self._drawn[direction] * scores).sum() / size - scores.diagonal().mean()

    def _weigh(self, direction: str, ids: np.ndarray, scores: Tensor) -> Tensor:
        """Updates the averages and returns (b, b) weights of the negatives, 0 on the diagonal."""
        size = len(ids)
        negatives = scores.float().masked_fill(torch.eye(size, dtype=torch.bool, device=scores.device), -torch.inf)
        log_mean = negatives.logsumexp(1) - math.log(size - 1)
        stored = self._state[f"{direction} log u"]
        before = torch.from_numpy(stored[ids]).to(log_mean)
        keep = math.log1p(-self.gamma) if self.gamma < 1 else -math.inf
        log_u = torch.logaddexp(before + keep, log_mean + math.log(self.gamma))
        log_u = torch.where(before.isinf(), log_mean, log_u)
        stored[ids] = log_u.cpu().numpy()
        return (negatives - log_u[:, None]).exp() / (size - 1)

    def get_config_dict(self) -> dict[str, Any]:
        """Returns the options, for the model card."""
        return {**super().get_config_dict(), "gamma": self.gamma}

    @property
    def citation(self) -> str:
        """BibTeX of the paper."""
        return """
@inproceedings{yuan2022sogclr,
    title={Provable Stochastic Optimization for Global Contrastive Learning: Small Batch Does Not Harm Performance},
    author={Zhuoning Yuan and Yuexin Wu and Zi-Hao Qiu and Xianzhi Du and Lijun Zhang and Denny Zhou and Tianbao Yang},
    booktitle={International Conference on Machine Learning},
    year={2022},
    eprint={2202.12387},
    archivePrefix={arXiv}
}
"""
