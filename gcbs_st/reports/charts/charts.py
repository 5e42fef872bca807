"""Log histories in, charts over the steps out, as PNG. Drawing needs the `report` extra (matplotlib).

A log history is what `trainer.state.log_history` holds and a run's `log_history.json` keeps. Values that are not
finite numbers are skipped: a loss that became NaN leaves the rest of its run to look at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gcbs_st.reports.charts.figures import Curve, line_chart

Entry = Mapping[str, Any]
# Title -> label of a line -> its points. Labels are "" where a chart needs no name for its only line.
Curves = dict[str, dict[str, Curve]]

# What a plan logs: title, unit, and the fields that share the chart. For several runs only the first field is drawn.
_PLAN_CHARTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Gap to the global loss", "nats", {"gap": "gap", "gap_bound": "bound that holds for it"}),
    ("Closed by each plan", "share of the closable gap", {"closed": ""}),
    ("Closed of the loss that is trained", "share of the closable gap", {"trained_closed": ""}),
    (
        "Negatives that count nothing",
        "share of those in a batch",
        {"plan_masked": "all", "worst_masked": "worst batches"},
    ),
    ("Tail coverage", "share of the 10 hardest negatives", {"tail_coverage": ""}),
    ("False negatives", "rows above an anchor's positive", {"false_negatives": ""}),
    ("Age of the embeddings", "optimizer steps", {"embedding_age": "mean", "embedding_age_max": "oldest"}),
)
LOSS_TITLE, SCORE_TITLE = "Training loss", "Scores during training"
_UNITS = {title: unit for title, unit, _ in _PLAN_CHARTS} | {LOSS_TITLE: "loss", SCORE_TITLE: "score x 100"}
# STS, retrieval and code search as this package logs them; `..._spearman_cosine` is the host's own, in [-1, 1].
_SCORE_KEY = re.compile(
    r"eval_(?:(?:sts|retrieval|code)_)?(?P<task>.+?)?_?(?P<kind>spearman(?P<fraction>_cosine)?|mrr|ndcg@10)"
)


def run_charts(log_history: Sequence[Entry], steps: int | None = None) -> dict[str, bytes]:
    """Returns the charts of one run, title -> PNG; every step at which a plan was made is marked.

    Only what was logged is drawn: an empty log has no chart. The horizontal axis ends at `steps`, or at the last
    logged step.
    """
    curves = read_curves(log_history)
    plans = sorted({step for title in list(_UNITS)[:2] for line in curves.get(title, {}).values() for step in line})
    return {
        title: line_chart(title, lines, unit=_UNITS[title], steps=steps, plans={"": plans})
        for title, lines in curves.items()
    }


def charts_of_runs(histories: Mapping[str, Sequence[Sequence[Entry]]], steps: int | None = None) -> dict[str, bytes]:
    """Returns charts with one line per way of training, title -> PNG.

    A line is the mean over the seeds, at steps that all of them logged. `histories` maps names to one log per seed.
    Plans are ticks, in the colour of their line, along the bottom of the loss.
    """
    per_run = {name: [read_curves(log, first_only=True) for log in logs] for name, logs in histories.items()}
    gap = _PLAN_CHARTS[0][0]
    charts = {}
    for title, unit in _UNITS.items():
        of_runs = {name: [run.get(title, {}) for run in runs] for name, runs in per_run.items()}
        labels = list(dict.fromkeys(label for runs in of_runs.values() for run in runs for label in run))
        # The tasks and the datasets of a plan are named where there are several.
        alone = len(labels) == 1
        lines = {
            name if alone else f"{name}, {label}": curve
            for name, runs in of_runs.items()
            for label in labels
            if (curve := mean_curve([run.get(label, {}) for run in runs]))
        }
        if lines:
            heading = f"{title}: {labels[0]}" if title == SCORE_TITLE and alone else title
            plans = {
                name: sorted(step for line in runs[0].get(gap, {}).values() for step in line)
                for name, runs in per_run.items()
                if runs and title == LOSS_TITLE
            }
            charts[title] = line_chart(heading, lines, unit=unit, steps=steps, plans=plans, order=list(per_run))
    return charts


def read_curves(log_history: Sequence[Entry], *, first_only: bool = False) -> Curves:
    """Returns the lines that a log holds, by chart, in the order of the charts; charts without a point are left out.

    With `first_only`, only the first of the fields that share a chart (the gap, not its bound).
    """
    found: Curves = {title: {} for title in _UNITS}
    fields = {
        field: (title, label)
        for title, _, labels in _PLAN_CHARTS
        for field, label in list(labels.items())[: 1 if first_only else None]
    }
    for entry in log_history:
        for key, value in entry.items() if _is_number(entry.get("step")) else ():
            if _is_number(value) and (place := _place_of(str(key), fields)):
                title, label, factor = place
                found[title].setdefault(label, {})[float(entry["step"])] = value * factor
    if len(tasks := found[SCORE_TITLE]) == 2:
        tasks.pop("avg, Spearman", None)  # the mean of one task
    return {title: lines for title, lines in found.items() if lines}


def _place_of(key: str, fields: Mapping[str, tuple[str, str]]) -> tuple[str, str, float] | None:
    """Returns title, label and factor of what is logged under a key; None if it is not drawn."""
    if key == "loss":
        return LOSS_TITLE, "", 1.0
    if key.startswith("gcbs/"):
        *dataset, field = key.split("/")[1:]
        if field not in fields:
            return None
        title, label = fields[field]
        return title, " ".join(filter(None, ["/".join(dataset), label])), 1.0
    if match := _SCORE_KEY.fullmatch(key):
        kind = "MRR" if match["kind"] == "mrr" else "Spearman"
        return SCORE_TITLE, f"{match['task'] or 'STS'}, {kind}", 100.0 if match["fraction"] else 1.0
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Returns the mean of curves at the steps that all of them have.

    >>> mean_curve([{1: 2.0, 2: 3.0}, {2: 5.0}])
    {2: 4.0}
    """
    shared = [step for step in curves[0] if all(step in curve for curve in curves)] if curves else []
    return {step: sum(curve[step] for curve in curves) / len(curves) for step in sorted(shared)}
