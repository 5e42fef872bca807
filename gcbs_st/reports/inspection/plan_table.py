"""The plans that a run kept and what it logged in, a table of how they changed out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gcbs_st.batches.plan_history import StoredPlan
from gcbs_st.reports.inspection.batch_scores import measure_batches, plain
from gcbs_st.reports.inspection.inspector import Subject

# As `GCBSTrainer` logs them.
_LOGGED = {
    "gcbs/closed": "closed",
    "gcbs/gap": "gap, nats",
    "gcbs/trained_closed": "closed, of the guarded loss",
    "gcbs/plan_masked": "negatives masked",
    "gcbs/worst_masked": "in the worst batches",
    "gcbs/repeated": "pairs as in the last plan",
    "gcbs/tail_coverage": "tail coverage",
    "gcbs/false_negatives": "false negatives per row",
    "gcbs/embedding_age": "embeddings' age, steps",
    "gcbs/embed_seconds": "embedding s",
    "gcbs/plan_seconds": "planning s",
}
_BATCHES = 256  # of each plan that are measured


def plan_table(
    plans: Sequence[StoredPlan], log_history: Sequence[Mapping[str, Any]], subject: Subject
) -> dict[str, Any]:
    """Returns a table of a run's plans: as logged when they were made, and measured with the subject's embeddings.

    The latter makes plans comparable: what is logged is measured with the model of that step, and of random batches
    nothing is logged. "columns" have "title" and "by" (what measured it); "rows" hold numbers, or None. A column without
    any number is left out.
    """
    logged = {entry["step"]: entry for entry in log_history if "gcbs/gap" in entry and "step" in entry}
    kept = {plan.step: plan for plan in plans}
    columns = [("step", ""), ("epoch", ""), *[(title, "as logged") for title in _LOGGED.values()]]
    columns += [(title, f"by {subject.model}") for title in ("in-batch loss, nats", "false negatives per row")]
    rows: list[list[float | None]] = []
    for step in sorted({*logged, *kept}):
        plan, entry = kept.get(step), logged.get(step, {})
        epoch = plan.epoch if plan is not None else entry.get("epoch")
        as_logged = [plain(v) if isinstance(v := entry.get(key), (int, float)) else None for key in _LOGGED]
        rows.append([step, None if epoch is None else int(epoch) + 1, *as_logged, *_measured(plan, subject)])
    filled = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    return {
        "columns": [{"title": columns[i][0], "by": columns[i][1]} for i in filled],
        "rows": [[row[i] for i in filled] for row in rows],
    }


def _measured(plan: StoredPlan | None, subject: Subject) -> list[float | None]:
    """Measures a sample of the batches that this plan decided and whose rows all have embeddings."""
    if plan is None:
        return [None, None]
    batches = plan.order.reshape(-1, plan.batch_size)[plan.drawn :]
    places = np.minimum(np.searchsorted(subject.rows, batches), len(subject.rows) - 1)
    usable = np.flatnonzero((subject.rows[places] == batches).all(axis=1))
    if not len(usable):
        return [None, None]
    picked = places[usable[np.linspace(0, len(usable) - 1, min(len(usable), _BATCHES)).astype(int)]]
    measures = measure_batches(subject.anchors, subject.positives, picked, scale=subject.scale)
    return [plain(measures.loss.mean()), plain(measures.false_negatives.mean())]
