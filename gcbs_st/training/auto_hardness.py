"""How hard the batches of `planner="auto"` are: embedded rows in, a hardness and the reason out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gcbs_st.batches.shared_values import SharedValues
from gcbs_st.planners import make_planner
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.quality import masked_shares
from gcbs_st.training.plan_advice import masked_at_random
from gcbs_st.training.rule import JUDGED_MARGIN, PLANNER, supported_hardness

# Rows of which a plan is made to see what it holds, and batches of it that are looked at: a fraction of a second.
_SAMPLED_ROWS, _MEASURED_BATCHES = 16_384, 64


def choose_hardness(
    pairs: tuple[np.ndarray, np.ndarray],
    shared: Contradictions | None,
    batch_size: int,
    rng: np.random.Generator,
    *,
    has_negatives: bool,
) -> tuple[float, str]:
    """Returns how hard batches should be, in (0, 1], and why, by what the hardest batches of a sample would hold.

    `pairs` are (n, d) unit rows of anchors and positives, n at least two batches; `shared` says which of them are kept
    apart or masked since they share a text or a group, None for none. `has_negatives` says whether rows have negatives
    of their own.
    """
    at_random = masked_at_random(pairs, JUDGED_MARGIN)
    planned = false_share(pairs, shared, batch_size, rng)
    return supported_hardness(
        static=False, masks=False, has_negatives=has_negatives, at_random=at_random, planned=planned
    )


def false_share(
    pairs: tuple[np.ndarray, np.ndarray], shared: Contradictions | None, batch_size: int, rng: np.random.Generator
) -> float:
    """Returns the share of the negatives of the hardest batches that look false, in [0, 1], in up to 16,384 random rows.

    A negative looks false if it scores above 0.95 of the anchor's own positive; what shares a text or a group with it is none.
    """
    sample = np.sort(rng.permutation(len(pairs[0]))[:_SAMPLED_ROWS])
    anchors, positives = (side[sample] for side in pairs)
    order = make_planner(PLANNER).plan(anchors, positives, batch_size, rng)
    order = order[: len(order) // batch_size * batch_size]
    known = Contradictions() if shared is None else replace(shared.of(sample), margin=None, judge=None)
    if known.starts is not None and known.values is not None:
        rows = np.repeat(np.arange(len(sample)), np.diff(known.starts))
        order = SharedValues(rows, known.values, known.strong, len(sample)).separate(order, batch_size)
    batches = order.reshape(-1, batch_size)
    batches = rng.permutation(batches)[:_MEASURED_BATCHES]
    looks_false = replace(known, margin=JUDGED_MARGIN)
    met = masked_shares(anchors, positives, batches, known)["masked"] if known else 0.0
    return masked_shares(anchors, positives, batches, looks_false)["masked"] - met
