"""What a plan needs to know of a loss: whether it contrasts the rows of a batch at all, with whom, and at which scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from sentence_transformers.util import dot_score

from gcbs_st.losses.guarded import Guarded

SCALE = 20.0

# The losses, the host's and one of ours, that score each row by itself, or against a target, label or negatives of its
# own: which rows share a batch makes no difference to what they teach. By name, since not every version of the host has all of them; classes
# derived from these count as they do.
WITHOUT_IN_BATCH_NEGATIVES = frozenset({
    "AnglELoss",
    "BatchAllTripletLoss",
    "BatchHardTripletLoss",
    "BatchSemiHardTripletLoss",
    "CSRReconstructionLoss",
    "CoSENTLoss",
    "ContrastiveLoss",
    "ContrastiveTensionLoss",
    "CosineSimilarityLoss",
    "DenoisingAutoEncoderLoss",
    "DistillKLDivLoss",
    "EmbedDistillLoss",
    "FlopsLoss",
    "MSELoss",
    "MarginMSELoss",
    "MultiVectorDistillKLDivLoss",
    "MultiVectorMarginMSELoss",
    "OnlineContrastiveLoss",
    "OwnNegativesRankingLoss",
    "SoftmaxLoss",
    "TripletLoss",
})  # fmt: skip


# Those of the host's that contrast an anchor with positives, so that a row needs two texts.
_OF_PAIRS = frozenset({
    "CachedGISTEmbedLoss",
    "CachedMultiVectorMultipleNegativesRankingLoss",
    "CachedMultipleNegativesRankingLoss",
    "GISTEmbedLoss",
    "MegaBatchMarginLoss",
    "MultiVectorMultipleNegativesRankingLoss",
    "MultipleNegativesRankingLoss",
    "RowLoss",
})  # fmt: skip


# Those of the host's that mask what a guide takes for false.
GUIDED_LOSSES = frozenset({"CachedGISTEmbedLoss", "GISTEmbedLoss"})


def unwrapped(loss: Any) -> Iterator[Any]:
    """Iterates over a loss, the one that it wraps (Matryoshka, SPLADE), and so on."""
    while loss is not None:
        yield loss
        loss = getattr(loss, "loss", None)


def contrasts_rows(loss: Any) -> bool:
    """Returns whether a loss contrasts the rows of a batch with each other; an unknown one is taken to do so."""
    return not _names(loss) & WITHOUT_IN_BATCH_NEGATIVES


def _names(loss: Any) -> set[str]:
    """The classes of a loss and of those that it wraps, with their bases."""
    return {one.__name__ for layer in unwrapped(loss) for one in type(layer).__mro__}


def name_loss(loss: Any) -> str:
    """Returns a loss's class, around those that it wraps: MatryoshkaLoss(CoSENTLoss)."""
    names = [type(layer).__name__ for layer in unwrapped(loss)]
    return "(".join(names) + ")" * (len(names) - 1)


def needs_pairs(loss: Any) -> bool:
    """Returns whether a loss is known to need an anchor and a positive in each row."""
    return bool(_names(loss) & _OF_PAIRS)


def loss_scale(loss: Any, mean_square_norm: float = 1.0) -> float:
    """Returns what a loss multiplies cosines with.

    That is its `scale`, the exponential of its `logit_scale`, 1 / `temperature`, or 20 if it has none of them; for a
    loss that scores with dot products, times the mean squared norm of the embeddings. Wrapped losses are looked into.
    """
    for layer in unwrapped(loss):
        factor = mean_square_norm if scores_dot_products(layer) else 1.0
        if (scale := _number(layer, "scale")) is not None:
            return scale * factor
        if (logarithm := _number(layer, "logit_scale")) is not None:
            return math.exp(logarithm) * factor
        if (temperature := _number(layer, "temperature")) is not None and temperature > 0:
            return factor / temperature
    return SCALE


def scores_dot_products(loss: Any) -> bool:
    """Returns whether a loss, or one that it wraps, scores with dot products, in which norms count."""
    functions = [getattr(layer, "similarity_fct", None) for layer in unwrapped(loss)]
    return any(getattr(one, "similarity_fct", one) is dot_score for one in functions)


def guard_margin(loss: Any) -> float | None:
    """Returns the margin above which a loss, or one that it wraps, masks negatives by its own scores; None without it."""
    for layer in unwrapped(loss):
        if isinstance(layer, Guarded):
            return layer.margin
    return None


def masks_negatives(loss: Any) -> bool:
    """Returns whether a loss, or one that it wraps, leaves out negatives that it takes for false, by its own scores or a guide's."""
    names = {type(layer).__name__ for layer in unwrapped(loss)}
    margin = guard_margin(loss)
    return bool(names & GUIDED_LOSSES) or (margin is not None and not math.isinf(margin))


def masks_by_identity(loss: Any) -> bool:
    """Returns whether rows that are no negatives of each other may share a batch, since the loss masks them there.

    Not in a wrapper of the user's, which may add a loss that does not.
    """
    *wrappers, innermost = [*unwrapped(loss)] or [None]
    known = all(type(layer).__module__.startswith("sentence_transformers.") for layer in wrappers)
    return known and isinstance(innermost, Guarded) and innermost.guard.mask_by_identity


def gathers_negatives(loss: Any) -> bool:
    """Returns whether a loss contrasts the rows of all ranks with one another."""
    return any(getattr(layer, "gather_across_devices", False) for layer in unwrapped(loss))


def _number(layer: Any, name: str) -> float | None:
    """A number among a loss's attributes, learnt or not."""
    value = getattr(layer, name, None)
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value.detach())
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
