"""The ranking loss without the in-batch negatives that look like positives, or are known to be no negatives.

Batches of close neighbours hold false negatives, and pushing those away hurts more than hard negatives help. What masks
them stands in the place of the loss's similarity function, so that everything else stays the host's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import util
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from gcbs_st.losses.guard import GuardedSimilarity
from gcbs_st.losses.identity import RowIdentities

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

CITATION = """
@misc{moreira2024nvretriever,
    title={NV-Retriever: Improving text embedding models with effective hard-negative mining},
    author={Gabriel de Souza P. Moreira and Radek Osmulski and Mengyao Xu and Ronay Ak and Benedikt Schifferer and Even Oldridge},
    year={2024},
    eprint={2407.15831},
    archivePrefix={arXiv},
    primaryClass={cs.IR}
}
"""


class Guarded:
    """What the guarded losses share: access to the guard in the place of their similarity function."""

    similarity_fct: Any
    model: Any
    directions: Any
    gather_across_devices: Any

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = util.cos_sim,
        *,
        margin: float | None = 0.95,
        guard_hard_negatives: bool = False,
        mask_by_identity: bool = False,
        **options: Any,
    ) -> None:
        guard = GuardedSimilarity(similarity_fct, margin, guard_hard_negatives, mask_by_identity)
        super().__init__(model, scale=scale, similarity_fct=guard, **options)  # type: ignore[call-arg]
        self._warned = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "similarity_fct" and not isinstance(value, GuardedSimilarity):
            self.guard.similarity_fct = value
        else:
            super().__setattr__(name, value)

    @property
    def guard(self) -> GuardedSimilarity:
        """The guard; its `similarity_fct` is the similarity function that was given."""
        guard: GuardedSimilarity = self.similarity_fct
        return guard

    @property
    def margin(self) -> float | None:
        """Share of the positive's score above which a negative is masked; None for no guard."""
        return self.guard.margin

    @property
    def last_masked(self) -> float:
        """Share of the last batch's negatives that were masked, in [0, 1]; waits for the device."""
        return float(self.guard.masked) / max(self.guard.negatives, 1)

    @property
    def last_identical(self) -> float:
        """Share of the last batch's negatives that were masked by identity, in [0, 1]; waits for the device."""
        return float(self.guard.identical) / max(self.guard.negatives, 1)

    def prepare(self, identities: RowIdentities | None) -> None:
        """Says what is known of the n rows of the training set; `GCBSTrainer` calls it. None forgets it."""
        self.guard.identities = identities

    def set_rows(self, row_ids: Sequence[int] | np.ndarray | None) -> None:
        """Says which rows the next batch holds, (b,) ids in 0..n-1 in its order; until the next call. None for unknown."""
        self.guard.row_ids = None if row_ids is None else np.asarray(row_ids, np.int64)

    def _watch(self, columns: int, rows: int) -> AbstractContextManager[None]:
        """See `GuardedSimilarity.watch`; warns once where rows are trained of which nothing is known."""
        guard = self.guard
        if guard.mask_by_identity and guard.row_ids is None and self.model.training and not self._warned:
            self._warned = True
            logger.warning(
                "%s: mask_by_identity=True, but nobody says which rows are in a batch, so %s is masked. Train with a trainer "
                "of gcbs_st, or call prepare and, before each batch, set_rows.",
                type(self).__name__,
                "nothing" if self.margin is None else "by score alone",
            )
        return guard.watch(self.directions, columns, rows, self.gather_across_devices)

    def get_config_dict(self) -> dict[str, Any]:
        """Returns the options, for the model card."""
        own = {
            "margin": self.margin,
            "guard_hard_negatives": self.guard.guard_hard_negatives,
            "mask_by_identity": self.guard.mask_by_identity,
        }
        return {**super().get_config_dict(), **own}  # type: ignore[misc]

    @property
    def citation(self) -> str:
        """The host's citation and that of the rule."""
        return str(super().citation + CITATION)  # type: ignore[misc]


class GuardedMultipleNegativesRankingLoss(Guarded, MultipleNegativesRankingLoss):
    """The host's MultipleNegativesRankingLoss without the in-batch negatives that score like a positive.

    A candidate whose similarity to a row lies above ``positive - (1 - margin) * |positive|``, where ``positive`` is
    the similarity of the row's own pair, is taken for a false negative and left out of that row's softmax. With a
    positive score that is ``margin * positive``. The batch's own scores decide, without gradient: no guide model. A
    row has one threshold, that of its own pair, for the candidates of all directions. Its own positive always stays,
    so a row whose negatives are all masked adds 0 to the loss. Takes pairs, triplets or n-tuples, and no labels. Cost:
    two passes over the scores.

    With `mask_by_identity` two rows are no negatives of each other in any direction, whatever they score, if they share
    an anchor, a positive or a group (`group_column` of the trainer's arguments), if the anchor of one is the positive
    of the other, or if one of them lists a text as a right answer (`positives_column`) that is the other's anchor or
    positive. The negatives of such a row stay; but a negative of any row is masked for a row whose anchor, positive or
    listed answer is the same text. Which rows are in a batch has to be known: `GCBSTrainer` says it, and then leaves
    such rows in one batch. In evaluation, and where nobody says it, only scores count.

    Args:
        model: the model to train.
        scale: what the similarities are multiplied with, 1 / temperature.
        similarity_fct: the scores, on which the guard decides before `scale` and hardness weights.
        margin: share of the positive's score, at least 0; None or infinity for exactly the host's loss. With 1 all
            that scores above the positive is masked, and above 1 only what does so by that share.
        guard_hard_negatives: whether the negatives of a row's own may be masked for that row. By default they stay.
            For other rows they are in-batch negatives, always guarded.
        mask_by_identity: mask by what is known of the rows as well, see below; with ``margin=None`` by that alone.
        **options: the host's: `gather_across_devices`, `directions`, `partition_mode`, `hardness_mode`,
            `hardness_strength`. The host refuses those that its installed version lacks.

    Raises:
        ValueError: `margin` below 0 or NaN, or an option that the host refuses.

    References:
        - Positive-aware mining: https://huggingface.co/papers/2407.15831
        - The mask, from a surrogate model's scores: https://huggingface.co/papers/2410.02525

    Recommendations:
        - Start from a model that ranks better than chance. The guard cannot tell a false negative from a pair that the
          model still ranks wrongly, and takes both out.
        - Use it with batches of close neighbours. With random batches it may hurt.
        - Watch `last_masked`, a share of the last batch's negatives (in MatryoshkaLoss: of the last dimensionality),
          and `last_identical`, the part of it that was masked by identity.

    Relations:
        - :class:`CachedGuardedMultipleNegativesRankingLoss` is the same loss in less memory.
        - GISTEmbedLoss with ``margin_strategy="relative", margin=0.05`` applies the same rule to a guide's scores.

    Example:
        The second document is nearly the first: it is no negative of the first query, nor the first of the second.

        >>> import torch
        >>> model = torch.nn.Identity()  # a SentenceTransformer
        >>> loss = GuardedMultipleNegativesRankingLoss(model, margin=0.95)
        >>> queries = torch.eye(3)
        >>> queries[1] = queries[0]
        >>> documents = torch.tensor([[1.0, 0.2, 0.0], [1.0, 0.1, 0.0], [0.0, 0.0, 1.0]])
        >>> value = loss.compute_loss_from_embeddings([queries, documents], None)
        >>> round(loss.last_masked, 2), loss.get_config_dict()["margin"]
        (0.33, 0.95)
    """

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Any) -> Tensor:
        """Returns the mean loss of the batch from one (b, d) tensor per text column; labels are not used."""
        with self._watch(len(embeddings) - 1, len(embeddings[0])):
            return super().compute_loss_from_embeddings(embeddings, labels)
