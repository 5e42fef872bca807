"""What is recorded of a plan: its batches in, measures, one line of the log and the warnings that a first plan calls for out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from gcbs_st.embeddings.source import INITIAL
from gcbs_st.planners import name_of
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.estimate import estimate_quality
from gcbs_st.planners.quality import PlanQuality
from gcbs_st.training.loss_facts import guard_margin, loss_scale, scores_dot_products
from gcbs_st.training.plan_advice import advise_on_plan, masked_at_random

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MadePlan:
    """A plan of some rows of a dataset, and what it was made from."""

    name: str  # of the dataset
    rows: np.ndarray  # (m,) ids of the rows that have embeddings, ascending
    pairs: tuple[np.ndarray, np.ndarray]  # (m, d) unit rows of their anchors and positives
    order: np.ndarray  # the rows in their new order, blocks of `size` are batches
    size: int
    hardest: bool  # whether batches are as hard as the planner makes them
    against: Contradictions | None  # of the m rows
    ages: np.ndarray  # optimizer steps that the embeddings are old
    planned_rows: int  # that the planner put into batches


class PlanRecords:
    """Keeps, for one trainer, what plans are compared with."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._last_parts: dict[str, np.ndarray] = {}  # the batch of each row in the plan before, -1 for none

    def measure(self, plan: MadePlan) -> PlanQuality | None:
        """Returns the quality of a plan's batches, and warns of what the first plan of a dataset shows.

        Of those batches whose rows all have embeddings; None if there is no such batch, or no pair in them.
        """
        quality = self._measure(plan)
        if plan.name not in self._last_parts:  # the first one of this dataset, whose loss may be its own
            self._check_guard(plan)
            advise_on_plan(self.trainer, plan.name, plan.pairs, plan.order, plan.size, quality, hardest=plan.hardest)
        return quality

    def log(self, plan: MadePlan, quality: PlanQuality | None, seconds: dict[str, float]) -> None:
        """Logs a plan, with what took how many seconds."""
        record: dict[str, float] = {} if quality is None else quality.logged()
        record |= {
            "planned_rows": plan.planned_rows,
            **{name: round(value, 4) for name, value in seconds.items()},
            "time_share": self.trainer.time_share(),
        }
        if (repeated := self._repeated(plan)) is not None:
            record["repeated"] = repeated
        if len(plan.ages):
            record |= {"embedding_age": float(plan.ages.mean()), "embedding_age_max": float(plan.ages.max())}
        self._report(plan.name, record)
        prefix = f"gcbs/{plan.name}/" if plan.name else "gcbs/"
        self.trainer.log({prefix + key: value for key, value in record.items()})

    def _measure(self, plan: MadePlan) -> PlanQuality | None:
        blocks = plan.order[: len(plan.order) // plan.size * plan.size].reshape(-1, plan.size)
        measured = np.searchsorted(plan.rows, blocks[np.isin(blocks, plan.rows).all(axis=1)].ravel())
        are_pairs = self._are_pairs(plan)
        if not len(measured) or (are_pairs is not None and not are_pairs[measured].any()):
            return None
        scale = loss_scale(self.trainer.loss_of(plan.name), self.trainer.source.mean_square_norm(plan.name))
        return estimate_quality(
            *plan.pairs, measured, plan.size, scale=scale, are_pairs=are_pairs, contradictions=plan.against
        )

    def _are_pairs(self, plan: MadePlan) -> np.ndarray | None:
        """(m,) bool, False for rows whose label says that their texts do not belong together; None without labels."""
        dataset = self.trainer.source.parts[plan.name].dataset
        labels = [one for one in self.trainer.data_collator.valid_label_columns if one in dataset.column_names]
        if not labels:
            return None
        values = np.asarray(dataset.with_format(None)[labels[0]][:])
        return values[plan.rows] > 0 if values.ndim == 1 and np.issubdtype(values.dtype, np.number) else None

    def _check_guard(self, plan: MadePlan) -> None:
        """Warns where the loss's guard would ignore much of what random batches hold."""
        margin, view = guard_margin(self.trainer.loss_of(plan.name)), self.trainer.source.options.planned_views[0]
        of_model = view is None or view.name == INITIAL  # a reference's embeddings are not what the guard sees
        if margin is None or not of_model:
            return
        self.trainer.warn_of_guard(masked_at_random(plan.pairs, margin))

    def _repeated(self, plan: MadePlan) -> float | None:
        """The share of pairs of rows in a batch that shared one in the plan before, too; None at the first.

        A window of a stream has other rows than the one before.
        """
        size = plan.size
        part = np.full(self.trainer.planned_samplers[plan.name].rows, -1)
        whole = plan.order[: len(plan.order) // size * size]
        part[whole] = np.arange(len(whole)) // size
        last, self._last_parts[plan.name] = self._last_parts.get(plan.name), part
        if last is None or len(last) != len(part) or self.trainer.feed is not None:
            return None
        met = np.sort(last[whole].reshape(-1, size), axis=1)
        pairs = sum(int(((run * (run - 1)) // 2).sum()) for run in map(_run_lengths, met))
        return pairs / max(1, len(met) * size * (size - 1) // 2)

    def _report(self, name: str, record: dict[str, float]) -> None:
        """One line for each plan, and one per run where the plan does not see all that the loss does."""
        columns = self.trainer.source.parts[name].columns
        if scores_dot_products(self.trainer.loss_of(name)):
            self.trainer.warn_once(
                f"dot products of {name}",
                "%s scores with dot products, but plans go by cosines: the norms of the embeddings move no row. What is "
                "logged of plans is of cosines times the mean squared norm, as if all embeddings were of that norm.",
                type(self.trainer.loss_of(name)).__name__,
            )
        logger.info(
            "Planned %d rows of %s with %s on %s: embedding %.1f s, planning %.1f s%s.",
            record["planned_rows"],
            name or "the training set",
            name_of(self.trainer.planner),
            " and ".join(column.name for column in columns),
            record["embed_seconds"],
            record["plan_seconds"],
            f", closed {record['closed']:.2f}" if "closed" in record else "",
        )


def _run_lengths(parts: np.ndarray) -> np.ndarray:
    """How often each number stands in an ascending array, those below 0 left out."""
    return np.unique(parts[parts >= 0], return_counts=True)[1]
