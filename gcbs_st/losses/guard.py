"""The guard: a similarity function around the user's, which answers -inf for what looks like a false negative, or is none.

The host's loss asks its `similarity_fct` for one block of scores after the other; the guard knows which block it is asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from sentence_transformers import util
from torch import Tensor, nn

from gcbs_st.losses.identity import BatchIdentities, RowIdentities

# The order in which the host asks for the scores of the directions it was given, from 5.4 to 6.2.
HOST_ORDER = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


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
