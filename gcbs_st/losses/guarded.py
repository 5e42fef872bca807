"""The ranking loss without the in-batch negatives that look like positives, or are known to be no negatives.

Batches of close neighbours hold false negatives, and pushing those away hurts more than hard negatives help. The
host's loss asks its `similarity_fct` for one block of scores after the other. The guard is a similarity function
around the user's that returns -inf for a false negative, so that everything else stays the host's.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn

from gcbs_st.losses.identity import BatchIdentities, RowIdentities

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

# The order in which the host asks for the scores of the directions it was given, from 5.4 to 6.2.
HOST_ORDER = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")

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


def false_negative_threshold(positive: Tensor, margin: float) -> Tensor:
    """Returns the (b,) scores above which a row's negatives are taken for false, from those of its positive.

    It is ``positive - (1 - margin) * |positive|``: `margin` times a positive score, and below a negative one by the
    same share, where `margin` times it would lie above it. Without gradient, and at least float32, since half
    precision would round the margin away.

    >>> false_negative_threshold(torch.tensor([0.8, 0.0, -0.8]), margin=0.75)
    tensor([ 0.6000,  0.0000, -1.0000])
    """
    exact = positive.detach().to(torch.promote_types(positive.dtype, torch.float32))
    return exact - (1 - margin) * exact.abs()


class GuardedSimilarity(nn.Module):
    """A similarity function that returns -inf for what it takes for, or knows to be, a false negative.

    Outside of `watch` it is the function that it was given: (rows, d) and (columns, d) to (rows, columns) scores. A
    module, so that weights of that function are trained. Raises a ValueError if `margin` is below 0 or NaN.
    """

    def __init__(
        self,
        similarity_fct: Callable[[Tensor, Tensor], Tensor],
        margin: float | None,
        guard_hard_negatives: bool,
        mask_by_identity: bool = False,
    ) -> None:
        super().__init__()
        if margin is not None and not margin >= 0:
            raise ValueError(f"margin: got {margin}, expected at least 0, or None for no guard.")
        self.similarity_fct, self.margin, self.guard_hard_negatives = similarity_fct, margin, guard_hard_negatives
        self.mask_by_identity = mask_by_identity
        self.identities: RowIdentities | None = None  # of the training set, from who trains
        self.row_ids: np.ndarray | None = None  # of this process's rows of the next batch
        self._batch: _WatchedBatch | None = None
        # Of the last batch; tensors until somebody reads them.
        self.masked: Tensor | int = 0
        self.identical: Tensor | int = 0  # of the masked ones, those by identity
        self.negatives = 0

    @property
    def __name__(self) -> str:
        """The similarity function's name, which the host writes into the model card."""
        named = getattr(util, "similarity_fct_name", lambda function: getattr(function, "__name__", str(function)))
        return str(named(self.similarity_fct))

    @contextmanager
    def watch(self, directions: Sequence[str], columns: int, rows: int, gathered: bool) -> Iterator[None]:
        """Masks the scores that are asked for meanwhile; raises a RuntimeError if they come in an unknown order.

        `columns` is the number of texts per row beside the query, `rows` that of this process's rows; `gathered` says
        whether the other processes' rows are among the candidates. Raises a ValueError if there are ids of another
        number of rows.
        """
        self.masked = self.identical = self.negatives = 0
        margin = None if self.margin is None or math.isinf(self.margin) else self.margin
        distributed = gathered and torch.distributed.is_available() and torch.distributed.is_initialized()
        knows = self.mask_by_identity and self.identities is not None and self.row_ids is not None
        if margin is None and not knows:
            yield
            return
        first = rows * torch.distributed.get_rank() if distributed else 0
        know = functools.partial(self._know, rows, distributed) if knows else None
        self._batch = batch = _WatchedBatch(margin, self.guard_hard_negatives, directions, columns, first, know)
        try:
            yield
        finally:
            self._batch = None
        batch.check(batch.position == first + rows and batch.calls % len(batch.directions) == 0)
        self.masked, self.identical, self.negatives = batch.masked, batch.identical, batch.negatives

    def _know(self, rows: int, distributed: bool, device: torch.device) -> BatchIdentities:
        """What is known of the rows of a batch, in the order in which the host gathers their embeddings."""
        assert self.identities is not None and self.row_ids is not None
        ids = self.row_ids
        if len(ids) != rows:
            raise ValueError(f"row_ids: got {len(ids)} ids for a batch of {rows} rows, expected one per row.")
        if distributed:
            ids = util.all_gather(torch.from_numpy(ids).to(device)).cpu().numpy()
        return self.identities.of(ids)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns the (rows, columns) scores of (rows, d) and (columns, d), masked inside of `watch`."""
        scores = self.similarity_fct(left, right)
        return scores if self._batch is None else self._batch.mask(left, right, scores)


class _WatchedBatch:
    """Follows the host through one batch: which scores it asks for, and where the rows' own texts are.

    A block of rows (the batch, or a mini-batch of the cached loss) starts with its query_to_doc scores, which hold the
    positives and so the thresholds.
    """

    def __init__(  # noqa: PLR0913 - one caller, which has all of these
        self,
        margin: float | None,
        guard_hard_negatives: bool,
        directions: Sequence[str],
        columns: int,
        first: int,
        know: Callable[[torch.device], BatchIdentities] | None,
    ) -> None:
        self.margin, self.guard_hard_negatives, self.columns = margin, guard_hard_negatives, columns
        self.know = know
        self.known: BatchIdentities | None = None  # of the whole batch, once it is asked for the first block
        self.directions = [direction for direction in HOST_ORDER if direction in directions]
        self.position = first  # the next block's first row among the gathered rows
        self.calls = self.negatives = 0
        self.masked: Tensor | int = 0
        self.identical: Tensor | int = 0
        self.queries = self.documents = self.own = self.threshold = torch.empty(0)
        self.related = self.false_texts = torch.empty(0)  # of the block, by identity

    def mask(self, left: Tensor, right: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores with -inf in the place of false negatives, in the orientation they came in."""
        direction = self.directions[self.calls % len(self.directions)]
        self.calls += 1
        if direction == "query_to_doc":
            self._open_block(left, right, scores)
        elif direction != "doc_to_query":
            self.check(left is (self.queries if direction == "query_to_query" else self.documents))
        by_row = scores.T if direction.startswith("doc") else scores
        # A row's own texts stand one gathered batch apart: its positive, its first negative, its second negative.
        gathered = len(self.documents) // self.columns
        texts = self.columns if direction.endswith("doc") else 1
        self.check(by_row.shape == (len(self.own), gathered * texts))
        spared = 1 if direction == "query_to_doc" and self.guard_hard_negatives else texts
        own = self.own[:, None] + gathered * torch.arange(spared, device=scores.device)
        found = [] if self.margin is None else [by_row.detach() > self.threshold[:, None]]
        if self.known is not None:
            by_identity = [self.related, self.false_texts] if direction.endswith("doc") else [self.related]
            found.append(torch.cat(by_identity, dim=1).scatter_(1, own, False))
            self.identical = self.identical + found[-1].sum()
        false = (found[0] if len(found) == 1 else found[0] | found[1]).scatter_(1, own, False)
        # Of a row's own texts only its explicit negatives compete with its positive, and only from the query.
        self.negatives += by_row.numel() - len(self.own) * (self.columns if direction == "doc_to_doc" else 1)
        self.masked = self.masked + false.sum()
        # Not in place: the similarity function may need its result for the backward pass.
        return scores.masked_fill(false.T if direction.startswith("doc") else false, -torch.inf)

    def check(self, as_expected: bool) -> None:
        """Raises if the host asks in another order than the one this guard follows, rather than mask at random."""
        if not as_expected:
            raise RuntimeError(
                f"got scores of this installed sentence-transformers in an unknown order, expected {self.directions} "
                "for each block of rows. Use margin=None, or sentence-transformers from 5.4 to 6.2."
            )

    def _open_block(self, queries: Tensor, documents: Tensor, scores: Tensor) -> None:
        """Notes where the block's own positives are, and the thresholds that follow from them."""
        self.queries, self.documents = queries, documents
        rows = torch.arange(len(queries), device=scores.device)
        self.own = rows + self.position
        self.position += len(queries)
        self.check(self.position * self.columns <= len(documents) and scores.shape == (len(rows), len(documents)))
        if self.margin is not None:
            self.threshold = false_negative_threshold(scores[rows, self.own], self.margin)
        if self.know is not None:
            self.known = self.known or self.know(documents.device)
            self.check(self.known.count * self.columns == len(documents))
            start, stop = self.position - len(rows), self.position
            self.related = self.known.related(start, stop, scores.device)
            self.false_texts = self.known.false_texts(start, stop, self.columns - 1, scores.device)


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

        >>> model = nn.Identity()  # a SentenceTransformer
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
