"""How hard single batches are, and what they look like: arrays and batches in, figures and matrices out."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from gcbs_st.planners.quality import SCALE, log_sum_exp

_CHUNK_NUMBERS = 2**22


@dataclass(frozen=True)
class BatchMeasures:
    """Means over the rows of each batch, (k,) float64 each."""

    loss: np.ndarray  # in-batch loss, nats
    hardest: np.ndarray  # cosine of a row's hardest in-batch negative; NaN in batches of one row
    false_negatives: np.ndarray  # in-batch negatives scored above the row's own positive
    tainted: np.ndarray  # share of the rows that have such a negative, in [0, 1]


def measure_batches(
    anchors: np.ndarray, positives: np.ndarray, batches: np.ndarray, *, scale: float = SCALE
) -> BatchMeasures:
    """Returns how hard each batch is, by the definitions of `gcbs_st.planners.quality`.

    `anchors` and `positives` are (m, d) floats, unit rows; `batches` (k, B) integers in [0, m); `scale` 1 / temperature.
    Cost: k B^2 d multiplications; memory for a few batches at a time, so that memory maps stay on disk. Raises a
    ValueError if a row is not finite.
    """
    count, batch_size = batches.shape
    loss, hardest, wrong, tainted = (np.full(count, np.nan) for _ in range(4))
    together = max(1, _CHUNK_NUMBERS // (batch_size * max(batch_size, anchors.shape[1])))
    for start in range(0, count, together):
        part = slice(start, start + together)
        scores = products_of(anchors, positives, batches[part])
        if not np.isfinite(scores).all():
            row = batches[part][~np.isfinite(scores).all(axis=2)][0]
            raise ValueError(f"embeddings: row {row} or one beside it holds NaN or infinity, expected finite numbers.")
        own = np.diagonal(scores, axis1=1, axis2=2)
        logits = scale * scores.reshape(-1, batch_size)
        above = scores > own[:, :, None]
        loss[part] = (log_sum_exp(logits).reshape(own.shape) - scale * own).mean(axis=1)
        wrong[part] = above.sum(axis=2).mean(axis=1)
        tainted[part] = above.any(axis=2).mean(axis=1)
        if batch_size > 1:
            scores[:, range(batch_size), range(batch_size)] = -np.inf
            hardest[part] = scores.max(axis=2).mean(axis=1)
    return BatchMeasures(loss, hardest, wrong, tainted)


def products_of(anchors: np.ndarray, positives: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """Returns the (k, B, B) float32 products of the (m, d) anchors and positives of each of the (k, B) batches."""
    left, right = (np.asarray(array[batches], np.float32) for array in (anchors, positives))
    return left @ right.transpose(0, 2, 1)


def similarity_matrix(scores: np.ndarray, width: int) -> dict[str, Any]:
    """Returns (s, s) cosines of anchors and positives, in batches of `width` rows, as JSON can hold them.

    "bytes" is base64 of uint8, 0 for a cosine of 0 or less and 255 for 1. "within" and "between" are the mean cosines of
    negatives within and between batches, None where there are none.
    """
    side = len(scores)
    same_batch = np.arange(side)[:, None] // width == np.arange(side) // width
    negatives = ~np.eye(side, dtype=bool)
    within, between = scores[same_batch & negatives], scores[~same_batch]
    grey = np.round(np.clip(scores, 0.0, 1.0) * 255).astype(np.uint8)
    return {
        "side": side,
        "width": width,
        "within": plain(within.mean()) if within.size else None,
        "between": plain(between.mean()) if between.size else None,
        "bytes": base64.b64encode(grey.tobytes()).decode("ascii"),
    }


def plain(number: float) -> float | None:
    """Returns a number as JSON can hold it: with three decimals, None for NaN and infinity."""
    return round(float(number), 3) if np.isfinite(number) else None
