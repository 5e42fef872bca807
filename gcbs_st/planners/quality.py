"""How good a batch plan is: embeddings and an order in, the gap it leaves and how much of it is closed out.

Notation: unit rows a_i (anchor) and p_i (positive), s_ij = scale * a_i . p_j, B(i) the batch of row i.
The loss of anchor i against a set J of positives is log sum_{j in J} exp(s_ij) - s_ii; a plan's gap is
the mean over anchors of the loss against all rows less the loss against the anchor's batch
(Sachidananda et al., arXiv 2210.12874).
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.base import check_pairs

logger = logging.getLogger(__name__)

SCALE = 20.0
TAIL = 10
SAMPLE_ROWS = 4096
# What is known of the losses that are trained, by the name that it is logged under: the losses themselves log `masked`.
_TRAINED = {
    "trained_gap": "trained_gap",
    "trained_closed": "trained_closed",
    "plan_masked": "masked",
    "worst_masked": "worst_masked",
}
# Of the scale: float32 rounds scores so that a gap which is none comes out as that much, by CPUs that sum in their own order.
_ROUNDING = 1e-6
# Anchors multiplied with all positives at a time, and products: memory is four bytes a product, a few times over.
_CHUNK_ROWS, _CHUNK_PRODUCTS = 512, 2**24


@dataclass(frozen=True)
class PlanQuality:
    """What a plan leaves of the gap between global and in-batch loss.

    Example:
        >>> rows = np.eye(4)
        >>> plan_quality(rows, rows, np.arange(4), batch_size=2, compare=False).rounded(2)["rows_used"]
        4
    """

    train: float  # mean in-batch loss, nats
    global_loss: float  # mean loss of the same anchors against all positives, nats
    gap: float  # global_loss - train, at least 0
    gap_bound: float  # the bound that is easy to compute, mean_i [max_j s_ij - mean_{j in B(i)} s_ij] + log(n / B)
    tail_coverage: float  # share of an anchor's 10 hardest negatives that sit in its batch, in [0, 1]
    false_negatives: float  # mean number of in-batch negatives scored above the anchor's own positive
    rows_used: int  # rows in whole batches
    rows: int  # n
    gap_random: float | None = None  # the gap of a seeded random order; None if it was not asked for
    # The gap if every anchor chose its own B - 1 hardest negatives, which no partition reaches.
    gap_limit: float | None = None
    closed: float | None = None  # (gap_random - gap) / (gap_random - gap_limit): 0 is random, 1 the unreachable limit
    # The same of the losses that are trained, in which rows that contradict each other count nothing; None without any.
    trained_gap: float | None = None
    trained_closed: float | None = None
    masked: float | None = None  # share of the in-batch negatives that count nothing, in [0, 1]
    worst_masked: float | None = None  # the same of the one batch in a hundred that has most of them

    def logged(self) -> dict[str, float]:
        """Returns the fields that tell something over the steps of a run."""
        return {
            "gap": self.gap,
            "gap_bound": self.gap_bound,
            "closed": self.closed or 0.0,
            "tail_coverage": self.tail_coverage,
            "false_negatives": self.false_negatives,
            **{logged: value for logged, name in _TRAINED.items() if (value := getattr(self, name)) is not None},
        }

    def rounded(self, digits: int = 4) -> dict[str, float | int | None]:
        """Returns the fields as a dict of rounded numbers; `global_loss` is named "global", as in tables."""
        fields = {"global" if key == "global_loss" else key: value for key, value in asdict(self).items()}
        return {
            key: round(value, digits) if isinstance(value, float) else value
            for key, value in fields.items()
            if value is not None or key not in _TRAINED.values()
        }


def plan_quality(  # noqa: PLR0913 - a keyword for each choice of the measurement
    anchors: np.ndarray,
    positives: np.ndarray,
    order: np.ndarray,
    batch_size: int,
    *,
    scale: float = SCALE,
    sample_rows: int | None = SAMPLE_ROWS,
    compare: bool = True,
    seed: int = 0,
    contradictions: Contradictions | None = None,
) -> PlanQuality:
    """Returns the quality of a plan, measured on whole batches drawn with a seed.

    `anchors` and `positives` are (n, d) floats, unit rows, row i of the second being the positive of row i of the
    first. `order` is (m,) integers in [0, n); consecutive blocks are batches, whose rows are distinct, and a shorter
    last block is left out. About `sample_rows` anchors are measured, None for all. `compare` also measures a random
    order and the limit, which `closed` needs. `contradictions` are of the n rows. Raises a
    ValueError for input that no planner takes, and an order that is not of integers, holds an unknown row, one twice
    in a batch, or less than a batch.

    Cost: O(sample_rows n d) time, twice that with `compare`; about 300 MB of memory, more from 16 million rows on.

        >>> angles = np.array([0.0, 0.1, 3.0, 3.1])  # two pairs of neighbours
        >>> rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        >>> near, far = (plan_quality(rows, rows, np.array(order), 2) for order in ([0, 1, 2, 3], [0, 2, 1, 3]))
        >>> near.gap < far.gap
        True
    """
    anchors, positives = check_pairs(anchors, positives, batch_size)
    order = np.asarray(order)
    n = len(anchors)
    if order.ndim != 1 or not np.issubdtype(order.dtype, np.integer):
        raise ValueError(f"order: got {order.dtype} of shape {order.shape}, expected (rows,) of integers.")
    if len(order) < batch_size:
        raise ValueError(f"order: got {len(order)} rows, expected at least one batch of {batch_size}.")
    batches = np.sort(order[: len(order) // batch_size * batch_size].reshape(-1, batch_size), axis=1)
    if (batches[:, 1:] == batches[:, :-1]).any() or order.min() < 0 or order.max() >= n:
        raise ValueError(f"order: holds a row twice in a batch or a row outside 0..{n - 1}, expected distinct rows.")
    positives = positives.astype(np.float32, copy=False)
    against = contradictions if contradictions else None
    drawn = _draw(order, batch_size, sample_rows, seed)
    measured = _measure(anchors, positives, drawn, scale, against, with_limit=False)
    found: dict[str, Any] = {**measured, "rows_used": len(order) // batch_size * batch_size, "rows": n}
    if against is not None:
        whole = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
        found |= masked_shares(anchors, positives, whole, against)
    if compare:
        shuffled = _draw(np.random.default_rng(1).permutation(n), batch_size, sample_rows, seed)
        plain = _measure(anchors, positives, shuffled, scale, against, with_limit=True)
        found |= {
            "gap_random": plain["gap"],
            "gap_limit": plain["gap_limit"],
            "closed": _closed(plain, measured, "", scale),
        }
        if against is not None:
            found["trained_closed"] = _closed(plain, measured, "trained_", scale)
    return PlanQuality(**found)


def _closed(plain: dict[str, float], measured: dict[str, float], which: str, scale: float) -> float:
    """What a plan closes of the gap that random batches leave, of one of the losses."""
    closable = plain[which + "gap"] - plain[which + "gap_limit"]
    return closed_share(plain[which + "gap"] - measured[which + "gap"], closable, scale)


def closed_share(gained: float, closable: float, scale: float) -> float:
    """Returns what is gained of what is closable, of losses whose scores are `scale` times cosines; 0 where nothing is.

    >>> closed_share(0.5, 2.0, 20.0), closed_share(1e-6, 4e-6, 20.0)
    (0.25, 0.0)
    """
    # Where all rows are alike no plan can differ from any other: nothing was closable.
    return gained / closable if closable > _ROUNDING * scale else 0.0


def masked_shares(
    anchors: np.ndarray, positives: np.ndarray, batches: np.ndarray, contradictions: Contradictions
) -> dict[str, float]:
    """Returns `masked` and `worst_masked` of `PlanQuality`, of all (k, B) batches of a plan, in O(k B^2 d) time."""
    shares = np.empty(len(batches))
    for number, batch in enumerate(batches):
        cosines = anchors[batch].astype(np.float32) @ positives[batch].astype(np.float32).T
        shares[number] = contradictions.among(batch, batch, cosines, cosines.diagonal()).sum()
    shares /= max(1, batches.shape[1] * (batches.shape[1] - 1))
    worst = np.sort(shares)[-max(1, len(shares) // 100) :]
    return {"masked": float(shares.mean()), "worst_masked": float(worst.mean())}


def _draw(order: np.ndarray, batch_size: int, sample_rows: int | None, seed: int) -> np.ndarray:
    """Whole batches of the order, (k, B), drawn without replacement."""
    batches = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    wanted = len(batches) if sample_rows is None else min(len(batches), max(1, sample_rows // batch_size))
    return batches[np.random.default_rng(seed).choice(len(batches), wanted, replace=False)]


def _measure(  # noqa: PLR0913 - one more would be a class
    anchors: np.ndarray,
    positives: np.ndarray,
    batches: np.ndarray,
    scale: float,
    contradictions: Contradictions | None,
    *,
    with_limit: bool,
) -> dict[str, float]:
    """Means over the anchors of the batches; of random ones the limits, of others the share of the tail."""
    batch_size, n = batches.shape[1], len(anchors)
    names = ["train", "global_loss", "gap_bound", "false_negatives"]
    names += ["gap_limit"] if with_limit else ["tail_coverage"]
    if contradictions is not None:
        names += ["trained_gap", *(["trained_gap_limit"] if with_limit else [])]
    sums = dict.fromkeys(names, 0.0)
    # A batch of thousands of rows is measured in pieces too: products of all its rows with all others are gigabytes.
    together = max(1, min(_CHUNK_ROWS, _CHUNK_PRODUCTS // n))
    for start in range(0, batches.size, together):
        places = np.arange(start, min(start + together, batches.size))
        rows, members = batches.ravel()[places], batches[places // batch_size]
        scores = scale * (anchors[rows].astype(np.float32, copy=False) @ positives.T)
        own = scores[np.arange(len(rows)), rows].astype(np.float64)
        within = np.take_along_axis(scores, members, axis=1)
        overall = log_sum_exp(scores) - own
        sums["train"] += (log_sum_exp(within) - own).sum()
        sums["global_loss"] += overall.sum()
        sums["gap_bound"] += (scores.max(axis=1) - within.mean(axis=1)).sum() + len(rows) * np.log(n / batch_size)
        sums["false_negatives"] += (within > own[:, None]).sum()
        if contradictions is not None:
            everybody = np.arange(n)
            barred = contradictions.among(rows, everybody, scores / scale, own / scale)
            allowed = np.where(barred, -np.inf, scores)
            inside = np.take_along_axis(allowed, members, axis=1)
            sums["trained_gap"] += (log_sum_exp(allowed) - log_sum_exp(inside)).sum()
            if with_limit:
                overall_allowed = log_sum_exp(allowed)
                allowed[np.arange(len(rows)), rows] = -np.inf
                sums["trained_gap_limit"] += (overall_allowed - hardest_log_sums(allowed, own, batch_size)).sum()
        # From here on only negatives count.
        scores[np.arange(len(rows)), rows] = -np.inf
        if not with_limit:  # which is asked for random batches, whose tail nobody looks at
            sums["tail_coverage"] += tail_shares(scores, members).sum()
        else:
            sums["gap_limit"] += (overall - hardest_log_sums(scores, own, batch_size) + own).sum()
    means = {key: float(total / batches.size) for key, total in sums.items()}
    # A mean of roundings can come out a hair below the bound that mathematics gives.
    means["gap"] = max(0.0, means["global_loss"] - means["train"])
    if contradictions is not None:
        means["trained_gap"] = max(0.0, means["trained_gap"])
    return means


def tail_shares(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Returns (m,) the share of each row's hardest negatives that are among the (m, B) members of its batch.

    `scores` are (m, n) of negatives, -inf where a row meets itself.
    """
    tail = min(TAIL, scores.shape[1] - 1)
    if tail == 0:
        return np.zeros(len(scores))
    hardest = np.argpartition(-scores, tail, axis=1)[:, :tail]
    return np.array([np.isin(own, batch).mean() for own, batch in zip(hardest, members, strict=True)])


def hardest_log_sums(scores: np.ndarray, own: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns (m,) the log-sum-exp of each row over its own score and those of its B - 1 hardest negatives.

    `scores` are (m, n) of negatives, -inf where a row meets itself; `own` are (m,).
    """
    n = scores.shape[1]
    if batch_size < n:
        scores = (
            np.partition(scores, n - batch_size + 1, axis=1)[:, n - batch_size + 1 :]
            if batch_size > 1
            else scores[:, :0]
        )
    return log_sum_exp(np.column_stack([own, scores]))


def log_sum_exp(scores: np.ndarray) -> np.ndarray:
    """Returns the (n,) float64 log of the sum of exponentials of each row of an (n, m) array, without overflow."""
    top = scores.max(axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)  # of a row that nothing but -inf stands in
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(scores - top).sum(axis=1, dtype=np.float64)) + top[:, 0])
