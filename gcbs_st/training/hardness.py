"""How hard batches are over a run: the `planner_hardness` of the training arguments in, a number for each step out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

EXPECTED = (
    "a number from 0 to 1, or a list of pairs [share of the run, hardness], both from 0 to 1, with rising shares"
)

_LOOKED_AT = 1000  # steps of a run, to see how far batches are behind their schedule


@dataclass(frozen=True)
class HardnessSchedule:
    """Pairs of share of the run and hardness, with rising shares; between them hardness is interpolated.

    Of two pairs of one share the later one is in force from there on, which makes a step.
    """

    points: tuple[tuple[float, float], ...]

    @classmethod
    def from_field(cls, given: Any) -> Self:
        """Returns the schedule that a number or a list of pairs stands for; None is the hardest.

        Raises a ValueError for anything else.
        """
        pairs = given if isinstance(given, (list, tuple)) else [[0.0, 1.0 if given is None else given]]
        try:
            points = np.array(pairs, np.float64)
        except (TypeError, ValueError):
            points = np.zeros(0)
        shaped = (
            points.ndim == 2 and points.shape[1:] == (2,) and len(points) > 0 and not isinstance(given, (bool, str))
        )
        if not shaped or not ((points >= 0) & (points <= 1)).all() or (np.diff(points[:, 0]) < 0).any():
            raise ValueError(f"planner_hardness: got {given!r}, expected {EXPECTED}.")
        return cls(tuple((float(share), float(hardness)) for share, hardness in points))

    def at(self, step: int, max_steps: int) -> float:
        """Returns how hard batches are to be that are drawn from an optimizer step on, 0 to 1."""
        points, share = self.points, step / max(1, max_steps)
        # A plan is made at the first whole step behind a point, which is up to a step late.
        behind = [i for i, (at, _) in enumerate(points) if at <= share + 1e-9]
        if not behind or behind[-1] == len(points) - 1:
            return points[behind[-1] if behind else 0][1]
        (start, first), (stop, last) = points[behind[-1]], points[behind[-1] + 1]
        return first + (last - first) * max(0.0, share - start) / (stop - start)

    def steps(self, max_steps: int) -> set[int]:
        """Returns the optimizer steps at which a plan is made for the schedule's sake."""
        return {math.ceil(share * max_steps - 1e-9) for share, _ in self.points if 0 < share < 1}


class Lag(NamedTuple):
    """How far batches are from a schedule, where they are furthest from it."""

    hardness: float  # of the batches, those of the last plan
    scheduled: float  # what it should be
    planned: int  # step of that plan
    step: int  # of the batches


def largest_lag(scheduled: Callable[[int], float], plan_steps: np.ndarray, end: int) -> Lag:
    """Returns where batches are furthest from a schedule: each is as hard as was due at the plan that it is of.

    `plan_steps` are the (p,) ascending optimizer steps at which plans are made, at least one, and `end` the step at which
    planned batches end. Before the first plan they are random and behind nothing. Of long runs 1,000 steps are looked at.

    >>> largest_lag(lambda step: 1 - step / 100, np.array([0, 75]), 100)
    Lag(hardness=1.0, scheduled=0.26, planned=0, step=74)
    """
    looked_at = np.unique(np.linspace(plan_steps[0], max(plan_steps[0], end - 1), _LOOKED_AT).astype(int))
    plans = plan_steps[np.searchsorted(plan_steps, looked_at, side="right") - 1]
    lags = (
        Lag(scheduled(planned), scheduled(step), planned, step)
        for step, planned in zip(looked_at.tolist(), plans.tolist(), strict=True)
    )
    return max(lags, key=lambda lag: abs(lag.hardness - lag.scheduled))
