"""Scores of paired runs in, figures out: differences to a reference with their intervals, times to a score.

Runs of one seed are pairs: they start from the same weights and see the same rows. What the seed does to both
of them is no part of their difference, so intervals of differences are far narrower than those of the scores.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t

from gcbs_st.records.run_result import RunResult, is_score

Curve = Sequence[Sequence[float]]  # (step, seconds, score) each


def paired_difference(
    values: Sequence[float], reference: Sequence[float], *, confidence: float = 0.95
) -> dict[str, Any]:
    """Returns what is known of the difference of two paired samples.

    `mean` of the k differences, `interval` [low, high] of Student's t around it (None for k = 1, of which nothing is
    known), `wins`, in how many pairs the value is above the reference, and `pairs`, k.

    Raises a ValueError for none, or not as many.

    >>> paired_difference([3.0, 4.0, 6.0], [2.0, 2.0, 3.0])
    {'mean': 2.0, 'interval': [-0.4841..., 4.4841...], 'wins': 3, 'pairs': 3}
    """
    if len(values) != len(reference) or not len(values):
        raise ValueError(
            f"pairs: got {len(values)} values and {len(reference)} references, expected as many, not none."
        )
    differences = [value - other for value, other in zip(values, reference, strict=True)]
    mean, pairs = statistics.fmean(differences), len(differences)
    interval = None
    if pairs > 1:
        half = float(t.ppf((1 + confidence) / 2, pairs - 1)) * statistics.stdev(differences) / math.sqrt(pairs)
        interval = [mean - half, mean + half]
    return {"mean": mean, "interval": interval, "wins": sum(d > 0 for d in differences), "pairs": pairs}


def time_to_score(curve: Curve, target: float) -> dict[str, float] | None:
    """Returns `step` and `seconds` of the first (step, seconds, score) of a curve at or above a target, or None.

    >>> time_to_score([(100, 2.0, 60.0), (200, 4.0, 63.0), (300, 6.0, 62.0)], 62.5)
    {'step': 200, 'seconds': 4.0}
    """
    for step, seconds, value in curve:
        if value >= target:
            return {"step": int(step), "seconds": float(seconds)}
    return None


def summarise(records: Mapping[str, Mapping[int, RunResult]], reference: str, target: str) -> dict[str, Any]:
    """Returns the figures of a comparison from its records by arm and seed.

    By arm: `scores` (name -> `mean`, `values`, and `difference`, see `paired_difference`), `seconds` and `steps` of
    the runs, `seconds_ratio` to the reference, `gap_closed`, and `time_to_score`: when the runs' `dev_curve` reaches
    the `target` score that the reference of their seed ends with. An arm may have fewer seeds than the reference; it
    is compared over its own. Raises a ValueError if the reference is not among the arms, or an arm has a seed that the
    reference has not.
    """
    if reference not in records:
        raise ValueError(f"reference: got {reference!r}, expected one of the arms {', '.join(records)}.")
    for arm, runs in records.items():
        if not runs or not set(runs) <= set(records[reference]):
            raise ValueError(
                f"arm {arm}: got the seeds {sorted(runs)}, expected some of those of {reference}, "
                f"{sorted(records[reference])}."
            )
    names = [name for name in next(iter(records[reference].values())).scores if is_score(name)]
    summary = {}
    for arm, runs in records.items():
        base = [records[reference][seed] for seed in runs]
        runs_of_arm = list(runs.values())
        seconds = [run.seconds_total for run in runs_of_arm]
        summary[arm] = {
            "scores": {name: _compare(runs_of_arm, base, name, arm != reference) for name in names},
            "steps": [run.steps for run in runs_of_arm],
            "seconds": {"values": seconds, "median": statistics.median(seconds)},
            "seconds_ratio": statistics.median(
                own / other.seconds_total for own, other in zip(seconds, base, strict=True)
            ),
            "time_to_score": _times(runs_of_arm, base, target),
            "gap_closed": statistics.fmean(run.gap_closed for run in runs_of_arm),
        }
    return summary


def _compare(runs: Sequence[RunResult], base: Sequence[RunResult], name: str, differs: bool) -> dict[str, Any]:
    values = [run.scores[name] for run in runs]
    difference = paired_difference(values, [run.scores[name] for run in base]) if differs else None
    return {"mean": statistics.fmean(values), "values": values, "difference": difference}


def _times(runs: Sequence[RunResult], base: Sequence[RunResult], target: str) -> dict[str, Any]:
    """When each run reaches what the reference of its seed ends with, and medians over those that do."""
    times = [time_to_score(run.dev_curve or [], other.scores[target]) for run, other in zip(runs, base, strict=True)]
    reached = [time for time in times if time]
    return {
        "per_seed": times,
        "reached": len(reached),
        "of": len(times),
        "median_step": statistics.median(time["step"] for time in reached) if reached else None,
        "median_seconds": statistics.median(time["seconds"] for time in reached) if reached else None,
        # Of the reference's whole run, planning and mining included.
        "median_seconds_share": (
            statistics.median(
                time["seconds"] / other.seconds_total
                for time, other in zip(times, base, strict=True)
                if time is not None
            )
            if reached
            else None
        ),
    }
