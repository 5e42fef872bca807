"""What is logged of a plan: the figures of `plan_quality`, estimated for a fraction of its price.

A gap needs an anchor's products with all rows, but most of what tells one plan from another shows in the products
within batches, which are n / B times cheaper. So many anchors, of many batches, are measured within their own batch and
within a random one, and only some of these against all rows. What the former do not show is predicted for them from
what they do show, by a linear regression over the latter (the regression estimator of survey sampling, Cochran 1977,
chapter 7): its errors are a third of those of a plain mean.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.quality import TAIL, PlanQuality, closed_share, log_sum_exp, masked_shares

# Products with all rows, and products within batches: a tenth of a second on two cores each.
_WIDE_PRODUCTS, _NEAR_PRODUCTS = 2**23, 2**22
# Rows that stand for all of them where there are more, and batches that anchors are drawn from.
_MOST_COLUMNS, _MOST_BATCHES = 2**16, 1024
# More rows stand for all where fewer of an anchor's B - 1 hardest negatives than this would be among them: the log of what
# a few of them stand for is too low.
_LEAST_HARDEST = 16
# Products that are held at a time, a few times over.
_CHUNK_PRODUCTS = 2**22
# Random batches that an anchor is measured in, and anchors that share one.
_MOST_REPEATS, _SHARING_ANCHORS = 32, 64
# Anchors without which a regression has too little to go by.
_LEAST_FITTED = 30


class _Near(NamedTuple):
    """What m anchors show within a batch."""

    places: np.ndarray  # (m,) where they stand in the order
    own: np.ndarray  # (m,) scores of their own positives
    batch: np.ndarray  # (m,) log-sum-exp over their batch
    random: np.ndarray  # (m,) log-sum-exp over a random batch, the mean of several where there are few anchors
    mean: np.ndarray  # (m,) mean score within their batch
    false: np.ndarray  # (m,) negatives in their batch that score above their positive


class _Wide(NamedTuple):
    """What s of these anchors show against all rows."""

    chosen: np.ndarray  # (s,) which of them
    all: np.ndarray  # (s,) log-sum-exp over all rows
    hardest: np.ndarray  # (s,) log-sum-exp over their own positive and their B - 1 hardest negatives
    top: np.ndarray  # (s,) highest score
    tail: np.ndarray  # (s,) share of the hardest negatives that sit in their batch


def estimate_quality(
    anchors: np.ndarray,
    positives: np.ndarray,
    order: np.ndarray,
    batch_size: int,
    *,
    scale: float,
    are_pairs: np.ndarray | None = None,
    seed: int = 0,
    contradictions: Contradictions | None = None,
) -> PlanQuality:
    """Returns the quality of a plan, estimated from anchors of many batches.

    `anchors` and `positives` are (n, d) unit rows, blocks of the (m,) `order` are batches, m a multiple of
    `batch_size`. `are_pairs` is (n,) bool, False for rows whose second text is no positive, which are no anchors
    either; None if all are pairs. `contradictions` are of the n rows. `closed` is 0 where no batch could differ from any
    other. Raises a ValueError if there is no batch, or no pair in the batches. Cost: 1.2e7 products of d numbers, or
    480 n / (B - 1) where that is more, about 200 MB of memory; twice that with contradictions.
    """
    plain = _estimate(anchors, positives, order, batch_size, scale, are_pairs, seed, None)
    if not contradictions:
        return plain
    trained = _estimate(anchors, positives, order, batch_size, scale, are_pairs, seed, contradictions)
    batches = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    drawn = np.random.default_rng(seed).permutation(len(batches))[:_MOST_BATCHES]
    shares = masked_shares(anchors, positives, batches[np.sort(drawn)], contradictions)
    found: dict[str, Any] = {"trained_gap": trained.gap, "trained_closed": trained.closed, **shares}
    return replace(plain, **found)


def _estimate(  # noqa: PLR0913 - what its caller was given
    anchors: np.ndarray,
    positives: np.ndarray,
    order: np.ndarray,
    batch_size: int,
    scale: float,
    are_pairs: np.ndarray | None,
    seed: int,
    against: Contradictions | None,
) -> PlanQuality:
    """The quality of the losses in which rows that contradict each other count nothing."""
    rng, n = np.random.default_rng(seed), len(anchors)
    batches = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    usable = np.ones(batches.shape, bool) if are_pairs is None else are_pairs[batches]
    if not usable.any():
        raise ValueError(
            f"order: got {len(order)} rows, expected at least one batch of {batch_size} that holds a pair."
        )
    near = _measure_near(anchors, positives, batches, usable, scale, rng, against)
    wide = _measure_wide(anchors, positives, batches, near.places, scale, rng, against)
    gap_random = _predict(wide.all - near.random[wide.chosen], wide, near)
    gap_limit = _predict(wide.all - wide.hardest, wide, near)
    gained, closable = float((near.batch - near.random).mean()), gap_random - gap_limit
    gap, train = max(0.0, gap_random - gained), float((near.batch - near.own).mean())
    return PlanQuality(
        train=train,
        global_loss=train + gap,
        gap=gap,
        gap_bound=_predict(wide.top - near.mean[wide.chosen], wide, near) + float(np.log(n / batch_size)),
        tail_coverage=_predict(wide.tail, wide, near),
        false_negatives=float(near.false.mean()),
        rows_used=batches.size,
        rows=n,
        gap_random=gap_random,
        gap_limit=gap_limit,
        closed=closed_share(gained, closable, scale),
    )


def _predict(values: np.ndarray, wide: _Wide, near: _Near) -> float:
    """The mean over all anchors of what was measured of some."""
    if len(values) < _LEAST_FITTED or len(values) == len(near.own):
        return float(values.mean())
    facts = np.column_stack([np.ones(len(near.own)), near.batch - near.own, near.random - near.own, near.own])
    weights = np.linalg.lstsq(facts[wide.chosen], values, rcond=None)[0]
    return float(facts.mean(axis=0) @ weights)


def _measure_near(  # noqa: PLR0913 - as its caller
    anchors: np.ndarray,
    positives: np.ndarray,
    batches: np.ndarray,
    usable: np.ndarray,
    scale: float,
    rng: np.random.Generator,
    against: Contradictions | None,
) -> _Near:
    batch_size = batches.shape[1]
    drawn = np.sort(rng.permutation(np.flatnonzero(usable.any(axis=1)))[:_MOST_BATCHES])
    most = max(1, _NEAR_PRODUCTS // (len(drawn) * batch_size))
    parts = []
    for number in drawn:
        batch = batches[number]
        slots = np.sort(rng.permutation(np.flatnonzero(usable[number]))[:most])
        queries = scale * anchors[batch[slots]].astype(np.float32)
        within = queries @ positives[batch].astype(np.float32).T
        own = within[np.arange(len(slots)), slots].astype(np.float64)
        allowed = _without_barred(within, batch[slots], batch, own, scale, against)
        parts.append(
            _Near(
                places=number * batch_size + slots,
                own=own,
                batch=log_sum_exp(allowed),
                random=np.zeros(len(slots)),
                mean=within.mean(axis=1),
                false=(within > own[:, None]).sum(axis=1),
            )
        )
    near = _Near(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    rows = batches.ravel()[near.places]
    return near._replace(random=_random_log_sums(anchors, positives, rows, near.own, batch_size, scale, rng, against))


def _without_barred(  # noqa: PLR0913 - as its caller
    scores: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    own: np.ndarray,
    scale: float,
    against: Contradictions | None,
) -> np.ndarray:
    """(m, k) scores of rows with columns, -inf where the two contradict each other."""
    if against is None:
        return scores
    return np.where(against.among(rows, columns, scores / scale, own / scale), -np.inf, scores)


def _random_log_sums(  # noqa: PLR0913 - as its caller
    anchors: np.ndarray,
    positives: np.ndarray,
    rows: np.ndarray,
    own: np.ndarray,
    batch_size: int,
    scale: float,
    rng: np.random.Generator,
    against: Contradictions | None,
) -> np.ndarray:
    """(m,) log-sum-exp of anchors over random batches.

    Anchors that share a random batch are themselves drawn at random: those of one planned batch are alike, and would
    all be lucky or unlucky together.
    """
    n, m = len(anchors), len(rows)
    repeats = max(1, min(_MOST_REPEATS, _NEAR_PRODUCTS // (4 * m * batch_size)))
    sums = np.zeros(m)
    for _ in range(repeats):
        order = rng.permutation(m)
        for start in range(0, m, _SHARING_ANCHORS):
            taken = order[start : start + _SHARING_ANCHORS]
            others = rng.choice(n, min(n, batch_size), replace=False)
            scores = scale * anchors[rows[taken]].astype(np.float32) @ positives[others].astype(np.float32).T
            scores = _without_barred(scores, rows[taken], others, own[taken], scale, against)
            # The own positive takes the place of one of the others: of itself where it is among them.
            itself = others[None, :] == rows[taken][:, None]
            scores[np.arange(len(taken)), itself.argmax(axis=1)] = own[taken]
            sums[taken] += log_sum_exp(scores) / repeats
    return sums


def _measure_wide(  # noqa: PLR0913 - as its caller
    anchors: np.ndarray,
    positives: np.ndarray,
    batches: np.ndarray,
    places: np.ndarray,
    scale: float,
    rng: np.random.Generator,
    against: Contradictions | None,
) -> _Wide:
    n, batch_size = len(anchors), batches.shape[1]
    wanted = min(n, max(_MOST_COLUMNS, math.ceil(_LEAST_HARDEST * n / max(1, batch_size - 1))))
    columns = np.arange(n) if wanted == n else np.sort(rng.choice(n, wanted, replace=False))
    weight = n / wanted
    chosen = np.sort(rng.permutation(len(places))[: max(_LEAST_FITTED, _WIDE_PRODUCTS // wanted)])
    # Each column stands for `weight` rows.
    hardest, tail = round((batch_size - 1) / weight), max(1, round(min(TAIL, n - 1) / weight))
    rows, members = batches.ravel()[places[chosen]], batches[places[chosen] // batch_size]
    queries = scale * anchors[rows].astype(np.float32)
    own = np.einsum("ij,ij->i", queries, positives[rows].astype(np.float32)).astype(np.float64)
    # Chunk by chunk: of all columns, only the highest scores and those of the anchors' own batches are kept.
    total = np.full(len(chosen), -np.inf)
    top = np.full((len(chosen), max(hardest, tail)), -np.inf, np.float32)
    own_batch = np.full(members.shape, -np.inf, np.float32)
    step = max(1, _CHUNK_PRODUCTS // len(chosen))
    for start in range(0, wanted, step):
        taken = columns[start : start + step]
        keys = positives[taken].astype(np.float32, copy=False)
        scores = _without_barred(queries @ keys.T, rows, taken, own, scale, against)
        scores[taken[None, :] == rows[:, None]] = -np.inf
        total = np.logaddexp(total, log_sum_exp(scores))
        both = np.concatenate([top, scores], axis=1)
        top = np.partition(both, both.shape[1] - top.shape[1], axis=1)[:, both.shape[1] - top.shape[1] :]
        found = np.minimum(np.searchsorted(taken, members), len(taken) - 1)
        own_batch = np.where(taken[found] == members, np.take_along_axis(scores, found, axis=1), own_batch)
    top = -np.sort(-top, axis=1)
    # Members of the batch that are among the columns, and harder than the last of the anchor's tail.
    in_tail = (own_batch >= top[:, tail - 1 : tail]) & (own_batch > -np.inf)
    return _Wide(
        chosen=chosen,
        all=np.logaddexp(own, total + np.log(weight)),
        hardest=np.logaddexp(own, log_sum_exp(top[:, :hardest]) + np.log(weight)) if hardest else own,
        top=np.maximum(own, top[:, 0]),
        tail=np.minimum(in_tail.sum(axis=1) / tail, 1.0),
    )
