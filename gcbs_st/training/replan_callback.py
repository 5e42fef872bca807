"""The callback that says when to plan: at each epoch's start, and every `replan_steps` steps within an epoch.

Planning in `on_step_end` and not elsewhere is what makes a checkpoint whole: that event comes before
evaluation and saving, so the checkpoint of a step holds the plan that the following steps draw from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from gcbs_st.training.arguments import GCBSTrainingArguments, PlanningArguments


class ReplanCallback(TrainerCallback):
    """Calls the trainer when a plan is due. Holds nothing but where in the run it is."""

    def __init__(
        self,
        begin_training: Callable[[], None],
        begin_epoch: Callable[[int, bool], None],
        replan_tail: Callable[[bool], None],
        steps_an_epoch: Callable[[], int],
        plan_next_passes: Callable[[], None],
    ) -> None:
        """Takes what to call: once per run, at each epoch's start, when a plan is due, and for the steps of an epoch.

        `begin_epoch` is given the epoch and whether to plan it, `replan_tail` whether to plan the rows that are not
        drawn yet. `plan_next_passes` is called at other steps with planned batches, for datasets that start over.
        """
        self._begin_training = begin_training
        self._begin_epoch = begin_epoch
        self._replan_tail = replan_tail
        self.steps_an_epoch = steps_an_epoch
        self._plan_next_passes = plan_next_passes
        self._epoch: int | None = None
        self._first_step = 0

    # The host's own callbacks are typed for its own arguments; ours are always of our class.
    def on_train_begin(  # type: ignore[override]
        self, args: GCBSTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forgets the epochs of an earlier call of `train`, and starts this one."""
        self._epoch = None
        self._begin_training()

    def on_epoch_begin(  # type: ignore[override]
        self, args: GCBSTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the epoch. The first one of a resumed run may lie anywhere: 1.5 is the middle of epoch 1."""
        self._first_step = state.global_step
        if self._epoch is None:
            self._epoch = int((state.epoch or 0.0) + 1e-6)
            if not args.ignore_data_skip:  # which starts an interrupted epoch anew
                self._first_step -= state.global_step % self.steps_an_epoch()
        else:
            self._epoch += 1
        self._begin_epoch(self._epoch, self.plans(args, state))

    def on_step_end(  # type: ignore[override]
        self, args: GCBSTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Plans the rest of the epoch when it is due."""
        step = state.global_step
        plans = self.plans(args, state)
        asked = self._due(args, state.max_steps)(step, step - self._first_step)
        # At the end of a run there is nothing left to draw, but by a longer one that resumes from its last checkpoint.
        over = step >= state.max_steps and args.save_strategy == SaveStrategy.NO
        due = plans and not over and asked
        cools = step == args.cooldown_start(state.max_steps) and step > args.planner_warmup_steps
        # A plan is logged, and the host takes any log for the one that is due at this step.
        should_log = control.should_log
        if due or cools:
            self._replan_tail(not cools)
        elif plans and not over:
            self._plan_next_passes()
        control.should_log = should_log

    def _due(self, args: PlanningArguments, max_steps: int) -> Callable[[int, int], bool]:
        """Returns what tells of a step of the run, and of the epoch that is under way, whether a plan is due at it."""
        interval = self.window_steps(args) or self.interval(args.replan_steps)
        named = {args.planner_warmup_steps, *args.hardness.steps(max_steps)}
        return lambda step, step_of_epoch: step in named or (interval > 0 and step_of_epoch % interval == 0)

    def plan_steps(self, args: PlanningArguments, max_steps: int) -> list[int]:
        """Returns the optimizer steps at which a run of rows that are no stream plans, ascending."""
        epoch, due, end = self.steps_an_epoch(), self._due(args, max_steps), args.cooldown_start(max_steps)
        planned = range(args.planner_warmup_steps, max_steps if end is None else min(end, max_steps))
        return [step for step in planned if step % epoch == 0 or due(step, step % epoch)]

    def steps_of_epoch(self, state: TrainerState) -> int:
        """Returns how many optimizer steps of the epoch are done."""
        return state.global_step - self._first_step

    @staticmethod
    def plans(args: PlanningArguments, state: TrainerState) -> bool:
        """Returns whether batches drawn from now on are planned ones."""
        cooldown = args.cooldown_start(state.max_steps)
        return args.planner_warmup_steps <= state.global_step and (cooldown is None or state.global_step < cooldown)

    def interval(self, replan_steps: float) -> int:
        """Returns the optimizer steps between plans for the arguments' `replan_steps`, 0 for none in mid-epoch."""
        if replan_steps == 0 or replan_steps >= 1:
            return int(replan_steps)
        return max(1, math.ceil(replan_steps * self.steps_an_epoch()))

    @staticmethod
    def window_steps(args: PlanningArguments) -> int:
        """Returns the optimizer steps that a window of rows is drawn in, 0 without windows."""
        return 0 if args.planning_window is None else max(1, args.planning_window // rows_per_step(args))


def rows_per_step(args: PlanningArguments) -> int:
    """Returns the rows that all processes together draw for an optimizer step."""
    return args.train_batch_size * args.world_size * args.gradient_accumulation_steps
