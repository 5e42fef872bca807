"""What batches of an embedded sample hold, random and planned ones, and which of their negatives are probably false."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gcbs_st.advice.sample import Sample
from gcbs_st.batches.shared_values import SharedValues
from gcbs_st.planners import make_planner
from gcbs_st.planners.algorithms.contradictions import Contradictions, limit_scores
from gcbs_st.planners.quality import closed_share, masked_shares, plan_quality
from gcbs_st.training.rule import JUDGED_MARGIN

_MEASURED_BATCHES = 64


@dataclass(frozen=True)
class PlanFigures:
    """What the batches of one planner hold."""

    closed: float  # of the gap between random batches and all rows: 1 is a limit that no plan reaches
    false_negatives: float  # in-batch negatives per row that score above its own positive
    guarded: float  # share of the in-batch negatives that score above 0.95 of the own positive, in [0, 1]


@dataclass(frozen=True)
class FalseNegative:
    """A probable false negative: a row whose positive scores above another row's own."""

    row: int  # ids in the dataset
    other: int
    own: float  # cosine of the row's anchor with its own positive
    score: float  # with the positive of the other


def measure_plans(
    sample: Sample,
    shared: SharedValues | None,
    batch_size: int,
    planners: Sequence[str],
    *,
    scale: float,
    seed: int = 0,
) -> tuple[dict[str, PlanFigures], dict[str, np.ndarray]]:
    """Returns figures and (k, B) batches by name of the planner, `random` first; rows are those of the sample.

    `shared` are the values of the sample's rows that must not meet, which are kept apart as the trainer keeps them.
    `scale` is 1 / temperature of the loss.
    """
    figures: dict[str, PlanFigures] = {}
    batches: dict[str, np.ndarray] = {}
    gap_random = gap_limit = 0.0
    for name in ("random", *planners):
        order = make_planner(name).plan(sample.anchors, sample.positives, batch_size, np.random.default_rng(seed))
        order = order[: len(order) // batch_size * batch_size]
        if shared:
            order = shared.separate(order, batch_size)
        quality = plan_quality(
            sample.anchors, sample.positives, order, batch_size, scale=scale, compare=name == "random"
        )
        if name == "random":
            gap_random, gap_limit = quality.gap, quality.gap_limit or 0.0
        batches[name] = order.reshape(-1, batch_size)
        # Not the first ones: a planner that halves the rows puts batches of one kind side by side.
        drawn = np.random.default_rng(seed).permutation(batches[name])[:_MEASURED_BATCHES]
        masked = masked_shares(sample.anchors, sample.positives, drawn, Contradictions(JUDGED_MARGIN))["masked"]
        closed = closed_share(gap_random - quality.gap, gap_random - gap_limit, scale)
        figures[name] = PlanFigures(closed, quality.false_negatives, masked)
    return figures, batches


def planning_seconds(planner: str, row_count: int, dimensions: int, batch_size: int) -> float:
    """Returns about how many seconds a plan of `row_count` rows takes: by one of 16,384 random rows, or all if fewer.

    Cost grows with rows times their logarithm, as that of halving does.
    """
    m = max(2, min(row_count, 16_384))
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((m, dimensions), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    began = time.perf_counter()
    make_planner(planner).plan(rows, rows, min(batch_size, m), rng)
    spent = time.perf_counter() - began
    return spent * (row_count * math.log(row_count)) / (m * math.log(m))


def worst_false_negatives(sample: Sample, batches: np.ndarray, count: int) -> list[FalseNegative]:
    """Returns the in-batch negatives that score above the own positive, one for each row, the highest score first.

    `batches` are (k, B) rows of the sample. Not by how far they score above it: that is most where a row's own texts do
    not belong together.
    """
    found: list[FalseNegative] = []
    for batch in batches:
        scores = sample.anchors[batch] @ sample.positives[batch].T
        own = scores.diagonal().copy()
        np.fill_diagonal(scores, -np.inf)
        hardest = scores.argmax(axis=1)
        for place in np.flatnonzero(scores.max(axis=1) > own):
            other = hardest[place]
            ids = int(sample.rows[batch[place]]), int(sample.rows[batch[other]])
            found.append(FalseNegative(*ids, float(own[place]), float(scores[place, other])))
    found.sort(key=lambda one: (-one.score, one.row))
    return found[:count]


def share_of_group_mates(anchors: np.ndarray, positives: np.ndarray) -> tuple[float, float]:
    """Returns how many rows of one value mean the same, and how many rows of two values, as shares in [0, 1].

    `anchors` and `positives` are (2 k, d) unit rows; rows 2 i and 2 i + 1 share a value. Two rows mean the same if the
    positive of one scores above 0.95 of what the other's own does.
    """
    rows = np.arange(len(anchors))
    own = np.einsum("ij,ij->i", anchors, positives)
    limit = limit_scores(own, JUDGED_MARGIN)
    mates, strangers = rows ^ 1, np.roll(rows, 2)

    def share(others: np.ndarray) -> float:
        return float((np.einsum("ij,ij->i", anchors, positives[others]) > limit).mean())

    return share(mates), share(strangers)
