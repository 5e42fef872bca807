"""What a first plan tells that a user should hear of, once: a plan and its figures in, warnings out."""

from __future__ import annotations

from typing import Any

import numpy as np

from gcbs_st.batches.shared_values import SharedValues
from gcbs_st.planners import name_of
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.quality import PlanQuality, masked_shares
from gcbs_st.training.loss_facts import masks_negatives
from gcbs_st.training.rule import MASKED_AT_RANDOM

# Of a row's in-batch negatives, the share above which false ones are worth a word. `gcbs-st advise` shows some of them.
MOST_FALSE = 0.05
# Of the rows: repeated word for word, or in no batch of an epoch.
_MOST_REPEATED, _MOST_LEFT_OUT = 0.01, 0.1
# A plan that closes less is no harder than random batches; of fewer batches the figure says little.
_LEAST_CLOSED, _LEAST_BATCHES = 0.05, 20
_DRAWN_ROWS = 512  # whose pairs tell what a guard does to random batches


def advise_on_plan(  # noqa: PLR0913 - what there is to know of a plan
    trainer: Any,
    name: str,
    pairs: tuple[np.ndarray, np.ndarray],
    order: np.ndarray,
    size: int,
    quality: PlanQuality | None,
    *,
    hardest: bool,
) -> None:
    """Warns once of each thing in a dataset's first plan that its user should know.

    `pairs` are (n, d) unit rows of anchors and positives, blocks of `size` of the (m,) `order` the batches, and `hardest`
    says whether they are as hard as the planner makes them.
    """
    of = f" {name!r}" if name else ""
    _on_repeats(trainer, name, of)
    left_out = len(order) - len(np.unique(order))
    if left_out > _MOST_LEFT_OUT * len(order):
        trainer.warn_once(
            f"left out of {name}",
            "%d of %d rows of the training set%s are in no batch of this plan: %s draws others again instead. With "
            "planner_options={'exact_cover': True} it draws each once.",
            left_out,
            len(order),
            of,
            name_of(trainer.planner),
        )
    if quality is None or quality.rows_used < _LEAST_BATCHES * size:
        return
    if hardest and name_of(trainer.planner) != "random" and (quality.closed or 0.0) < _LEAST_CLOSED:
        trainer.warn_once(
            f"closed of {name}",
            "The first plan of the training set%s closes %.2f of the gap between random batches and the hardest ones: %s "
            "makes batches that are hardly harder than random. Take planner='bisect' or 'best', or keep random batches and "
            "save the time.",
            of,
            quality.closed or 0.0,
            name_of(trainer.planner),
        )
    share = quality.false_negatives / max(1, size - 1)
    is_judge = masked_at_random(pairs, margin=1.0) <= MASKED_AT_RANDOM  # and does not find all texts alike
    if share > MOST_FALSE and is_judge and not masks_negatives(trainer.loss_of(name)):
        group = "" if trainer.args.group_column else "Name a group_column if a column says which rows mean the same; "
        trainer.warn_once(
            f"false negatives of {name}",
            "In planned batches of the training set%s %.0f %% of a row's negatives score above its own positive: many of "
            "them are probably false. %splanner_hardness=0.5 leaves most of them in other batches; for STS alone a guarded loss may "
            "gain more. gcbs-st advise shows such negatives.",
            of,
            100 * share,
            group,
        )


def _on_repeats(trainer: Any, name: str, of: str) -> None:
    shared: SharedValues | None = trainer.apart.contradicting.get(name)  # also where the loss needs no rows apart
    if not shared or name not in trainer.source.parts:
        return
    rows = trainer.planned_samplers[name].rows
    texts = trainer.row_memory.texts_of(name)
    if (repeats := shared.count_repeats(len(texts))) > _MOST_REPEATED * rows:
        trainer.warn_once(
            f"repeats of {name}",
            "%d of the %d rows of the training set%s repeat the texts of an earlier row. They are trained, "
            "and count twice: remove them if that is not meant.",
            repeats,
            rows,
            of,
        )


def masked_at_random(pairs: tuple[np.ndarray, np.ndarray], margin: float) -> float:
    """Returns the share of the negatives of random batches that score above `margin` times the own positive, in [0, 1].

    `pairs` are (n, d) unit rows of anchors and positives, of which up to 512 are drawn.
    """
    drawn = np.random.default_rng(0).permutation(len(pairs[0]))[:_DRAWN_ROWS]
    return masked_shares(*pairs, drawn[None], Contradictions(margin))["masked"]
