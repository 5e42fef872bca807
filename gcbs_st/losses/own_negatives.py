"""The ranking loss over a row's own negatives alone: no row is a negative of another.

For rows whose neighbours in a batch are no negatives: classes that recur, questions with several right answers, or
negatives that somebody has curated. Which rows share a batch makes no difference to what it teaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import util
from torch import Tensor, nn

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CITATION = """
@inproceedings{gao2021rethink,
    title={Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline},
    author={Luyu Gao and Zhuyun Dai and Jamie Callan},
    booktitle={Advances in Information Retrieval (ECIR)},
    year={2021},
    eprint={2101.08751},
    archivePrefix={arXiv}
}
"""


class OwnNegativesRankingLoss(nn.Module):
    """A softmax over a row's positive and its own negatives; the host's ranking loss adds those of all other rows.

    Localized contrastive estimation (Gao et al. 2021, arXiv 2101.08751) of an embedding model: the mean over rows of
    -log(exp(s_p) / (exp(s_p) + sum of exp(s_n))), where s are `scale` times the similarities of the anchor to its positive
    and to each of its k negatives. The trainers load datasets with this loss as the host loads them: composed batches could
    not help it.

    Args:
        model: embeds the texts.
        scale: what similarities are multiplied with, above 0; 1 / temperature.
        similarity_fct: (b, d) and (b, d) to the (b,) similarities of their rows.

    Inputs: (anchor, positive, negative_1, ..., negative_k) texts, k at least 1, and no labels. Raises a ValueError for a
    scale that is not above 0, and for rows without negatives.

        >>> import torch
        >>> loss = OwnNegativesRankingLoss(model=None, scale=1.0)
        >>> anchor, positive, negative = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
        >>> loss.compute_loss_from_embeddings([anchor, positive, negative])  # log(1 + exp(0 - 1))
        tensor(0.3133)
    """

    def __init__(
        self,
        model: SentenceTransformer | None,
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = util.pairwise_cos_sim,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale: got {scale}, expected more than 0.")
        self.model, self.scale, self.similarity_fct = model, scale, similarity_fct

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Returns the loss of a batch, a scalar; one mapping of features for each text column."""
        assert self.model is not None
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Returns the loss, a scalar, of the (b, d) embeddings of anchors, positives and each column of negatives."""
        if len(embeddings) < 3:
            raise ValueError(
                f"OwnNegativesRankingLoss: got {len(embeddings)} text columns, expected anchor, positive and at least one "
                "negative: other rows are no negatives here. Mine some with sentence_transformers.util.mine_hard_negatives."
            )
        anchors, *candidates = embeddings
        scores = torch.stack([self.similarity_fct(anchors, candidate) for candidate in candidates], dim=1)
        positive = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        return nn.functional.cross_entropy(scores * self.scale, positive)

    def get_config_dict(self) -> dict[str, Any]:
        """Returns the options, for the model card."""
        return {"scale": self.scale, "similarity_fct": getattr(self.similarity_fct, "__name__", "")}

    @property
    def citation(self) -> str:
        """The paper, for the model card."""
        return CITATION
