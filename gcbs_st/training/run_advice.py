"""What the arguments of a run tell before it begins that its user should hear of, once: a trainer in, warnings out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gcbs_st.planners import name_of
from gcbs_st.planners.algorithms.clusters import hardness_of
from gcbs_st.planners.base import abilities_of
from gcbs_st.training.hardness import largest_lag
from gcbs_st.training.loss_facts import guard_margin
from gcbs_st.training.replan_callback import ReplanCallback

# How far batches may be from a schedule of hardness: as far as they are where it rises over three epochs with a plan each.
_MOST_LAG = 0.4
_OF_HARVESTED = ("first_plan", "embedding_max_age", "embedding_dtype", "embedding_storage")


def advise_on_run(trainer: Any, calendar: ReplanCallback) -> None:
    """Warns of a run that plans nothing, of arguments that change nothing in it, and of hardness that no plan follows.

    `calendar` knows when plans are made. Nothing is said of random batches that were asked for.
    """
    if not trainer.row_memory.embeds_rows or max(share for _, share in trainer.args.hardness.points) == 0:
        return
    steps = None if trainer.feed is not None else calendar.plan_steps(trainer.args, trainer.state.max_steps)
    if (why := _why_nothing_is_planned(trainer, calendar, steps)) is not None:
        trainer.warn_once("nothing planned", "No batch of this run will be planned: %s.", why)
        return
    for field, why in _idle_arguments(trainer, calendar):
        value = getattr(trainer.args, field)
        trainer.warn_once(f"idle {field}", "%s: got %r, which has no effect in this run: %s.", field, value, why)
    if steps is not None:
        _warn_of_lag(trainer, steps)


def _why_nothing_is_planned(trainer: Any, calendar: ReplanCallback, steps: list[int] | None) -> str | None:
    """Why all batches will be random, None if they will not. `steps` are those at which plans are made."""
    args, max_steps = trainer.args, trainer.state.max_steps
    end = args.cooldown_start(max_steps)
    if args.planner_warmup_steps >= (max_steps if end is None else end):
        return (
            f"planner_warmup_steps={args.planner_warmup_steps} and planner_cooldown_steps={args.planner_cooldown_steps} "
            f"leave none of its {max_steps} steps. Lower them"
        )
    never_encodes = args.first_plan == "random" and args.embedding_max_age is None
    once = abilities_of(trainer.planner).covers_each_row_once
    passes = max(sampler.passes for sampler in trainer.planned_samplers.values())
    in_first_epoch = steps is not None and max(steps) < calendar.steps_an_epoch()
    if args.embedding_source == "harvest" and never_encodes and once and passes == 1 and in_first_epoch:
        return (
            "embedding_source='harvest' knows rows that were trained, but they are not drawn again before the next epoch, "
            "of which this run plans none. Train more epochs, or use first_plan='encode' or embedding_source='encode'"
        )
    return None


def _idle_arguments(trainer: Any, calendar: ReplanCallback) -> Iterator[tuple[str, str]]:
    """Fields that are not at their defaults and change nothing, with why."""
    defaults = {field.name: field.default for field in dataclasses.fields(trainer.args)}
    idle = (*_idle_harvesting(trainer), *_idle_interval(trainer, calendar), *_idle_judgement(trainer))
    return ((field, why) for field, why in idle if getattr(trainer.args, field) != defaults[field])


def _idle_harvesting(trainer: Any) -> Iterator[tuple[str, str]]:
    if trainer.args.embedding_source != "harvest":
        for field in _OF_HARVESTED:
            yield field, "it is for embedding_source='harvest', and here rows are embedded for each plan"


def _idle_interval(trainer: Any, calendar: ReplanCallback) -> Iterator[tuple[str, str]]:
    if trainer.feed is None:
        steps = min(calendar.steps_an_epoch(), trainer.state.max_steps)
        if calendar.interval(trainer.args.replan_steps) >= steps:
            yield "replan_steps", f"each epoch begins with a plan, and ends (or the run does) within {steps} steps"


def _idle_judgement(trainer: Any) -> Iterator[tuple[str, str]]:
    if trainer.plans_differently:
        return
    if not hasattr(trainer.planner, "contradictions"):
        name = name_of(trainer.planner)
        why = f"{name} does not ask which rows are no negatives of each other. best, partition and hobit do"
        yield from (("planner_margin", why), ("planner_reference", why))
        return
    margins = {guard_margin(trainer.loss_of(name)) for name in trainer.planned_samplers}
    if trainer.args.planner_margin is None and margins == {None}:
        yield "planner_reference", "there is no margin for it to go by. Set planner_margin, or use a guarded loss"


def _warn_of_lag(trainer: Any, plan_steps: list[int]) -> None:
    """Warns where hardness is to change and no plan is made meanwhile; `plan_steps` is ascending, and not empty."""
    args, max_steps = trainer.args, trainer.state.max_steps
    scheduled: Callable[[int], float] = functools.partial(args.hardness.at, max_steps=max_steps)
    field = "planner_hardness"
    if args.cluster_schedule == "curriculum":
        size = trainer.contrast_size(next(iter(trainer.planned_samplers)))
        scheduled, field = lambda step: hardness_of(size // trainer.clusters_at(step, size), size), "cluster_schedule"
    cooldown = args.cooldown_start(max_steps)
    lag = largest_lag(scheduled, np.array(plan_steps), max_steps if cooldown is None else cooldown)
    if abs(lag.hardness - lag.scheduled) > _MOST_LAG:
        trainer.warn_once(
            "lag",
            "%s: batches are as hard as is scheduled when a plan is made. Those from step %d on are of hardness %.2f, and "
            "still are at step %d, where the schedule says %.2f. Set replan_steps to plan in between.",
            field,
            lag.planned,
            lag.hardness,
            lag.step,
            lag.scheduled,
        )
