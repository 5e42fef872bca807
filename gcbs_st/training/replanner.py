"""What is done when a plan is due: rows that are left, their embeddings, the planner, and the order that comes of it.

`ReplanCallback` says when; the trainer is asked for everything that belongs to it. All ranks come here
alike, the main one plans, with the others' help where the planner's work can be split, and all take its order.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gcbs_st.batches.checkpoint import read_plan
from gcbs_st.batches.sampler import PlannedBatchSampler
from gcbs_st.embeddings.source import Fetched
from gcbs_st.planners import check_order
from gcbs_st.planners.algorithms.clusters import deal_clusters, redeal_clusters, rows_per_cluster, without_repeats
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.base import abilities_of, check_batches, check_pairs, configured
from gcbs_st.ranks import agree, agree_on_rows, failing_together
from gcbs_st.training.loss_facts import guard_margin, loss_scale
from gcbs_st.training.parallel_planning import plan_with_all, splits_work
from gcbs_st.training.plan_records import MadePlan, PlanRecords

logger = logging.getLogger(__name__)

# Purposes of a sampler's generators.
_PLAN, _SHUFFLE, _CHOOSE = 1, 2, 5


class Replanner:
    """Plans the epochs of one trainer, and takes plans over from its checkpoints."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.plans_made = 0
        self.records = PlanRecords(trainer)

    def begin_epoch(self, epoch: int, plan: bool) -> None:
        """Starts an epoch, with the plan of the checkpoint that the run resumes from or a new one."""
        for sampler in self.trainer.planned_samplers.values():
            sampler.begin_epoch(epoch)
        self.trainer.source.sync()  # rows of two epochs must not wait side by side: which is newer would be left to chance
        if self._restore(epoch) or not plan:
            return
        self.replan_tails()

    def _restore(self, epoch: int) -> bool:
        """Takes the plan of the checkpoint that the run resumes from, in its first epoch; whether it did."""
        folder, self.trainer.resume_folder = self.trainer.resume_folder, None
        if folder is None:
            return False
        self.trainer.row_memory.load(Path(folder))
        if self.trainer.args.ignore_data_skip:
            return False
        try:
            states, fingerprint = read_plan(folder)
            if fingerprint != self.trainer.training_set_fingerprint() or set(states) != set(
                self.trainer.planned_samplers
            ):
                raise ValueError("it was made for another training set")
            for name, state in states.items():
                self.trainer.planned_samplers[name].load_state_dict(state)
        except (KeyError, TypeError, ValueError) as error:
            logger.warning(
                "The plan of %s cannot be resumed: %s. This epoch is planned anew: its batches are not those of "
                "the interrupted run, so some rows may be drawn twice or not at all in this epoch.",
                folder,
                error,
            )
            restored = False
        else:
            # Saved at an epoch's end: the next epoch is planned anew, as it was to be.
            restored = all(sampler.epoch == epoch for sampler in self.trainer.planned_samplers.values())
        if not restored:
            for sampler in self.trainer.planned_samplers.values():
                sampler.begin_epoch(epoch)
        return restored

    def replan_tails(self, plan: bool = True) -> None:
        """Plans the rows of all datasets that are not drawn yet; of one that starts over, those of the present pass.

        And those of passes that are planned already, or that begin before the next step.
        """
        for index, (name, sampler) in enumerate(self.trainer.planned_samplers.items()):
            for number in range(sampler.cursor // sampler.pass_batches, sampler.passes):
                batches = sampler.batches_of_pass(number)
                if number >= sampler.passes_planned and batches.start >= sampler.cursor + self._drawn_ahead():
                    break
                self._replan_tail(name, index, range(max(batches.start, sampler.cursor), batches.stop), plan)
                sampler.passes_planned = max(sampler.passes_planned, number + 1)

    def plan_next_passes(self) -> None:
        """Plans the passes over a dataset's rows that begin before the next step, if they are not planned yet."""
        if self.trainer.row_memory.source is None or self.trainer.feed is not None:
            return
        for index, (name, sampler) in enumerate(self.trainer.planned_samplers.items()):
            for number in range(sampler.passes_planned, sampler.passes):
                batches = sampler.batches_of_pass(number)
                if batches.start >= sampler.cursor + self._drawn_ahead():
                    break
                if batches.start >= sampler.cursor:
                    self._replan_tail(name, index, batches, plan=True)
                sampler.passes_planned = number + 1

    def _drawn_ahead(self) -> int:
        """The batches, of all ranks, that the loader may draw until the next plan can be made; its workers draw ahead."""
        args = self.trainer.args
        ahead = args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
        steps: int = args.gradient_accumulation_steps + 1 + ahead
        return steps * args.world_size * int(args.sub_batches)

    def _replan_tail(self, name: str, index: int, batches: range, plan: bool) -> None:
        """Plans the rows of one dataset's batches, up to the end of a pass over its rows, in whole steps of all ranks."""
        sampler, ranks = self.trainer.planned_samplers[name], self.trainer.args.world_size
        start = batches.start
        # The batches that do not fill a step of all ranks are never drawn. They stay at the end as they
        # are, random rows, so that it is not always the end of a plan that is lost.
        steps = len(batches) // ranks
        if self.trainer.window_steps:  # what lies behind the window stays as it is, random rows
            steps = min(steps, self.trainer.window_steps * self.trainer.args.gradient_accumulation_steps)
        if steps * ranks < 2:
            return
        stop = (start + steps * ranks) * sampler.batch_size
        tail = sampler.order[start * sampler.batch_size :].copy()
        planned = stop - start * sampler.batch_size
        able, rng = abilities_of(self.trainer.planner), sampler.rng(_PLAN, sampler.plan_count, index)
        size, once = self.trainer.contrast_size(name), able.covers_each_row_once
        cluster_size = self._cluster_size(sampler, size) if plan and not self.trainer.auto.leaves_random(name) else 1
        if cluster_size == 1 or not (able.needs_embeddings or self.trainer.plans_differently):
            new = rng.permutation(np.sort(tail[:planned]))  # needs no embeddings
            new = self._separated(new, tail[:planned], name)
        elif self._only_redeals(sampler, cluster_size, once):
            new = tail[:planned]
            if cluster_size < size:  # otherwise the batches stay, which are apart as far as can be
                new = self._separated(redeal_clusters(new, cluster_size, size, rng), new, name)
        else:
            rows = self._rows_to_plan(tail[:planned], sampler, once, rng)
            source = self.trainer.source
            began, harvesting = time.perf_counter(), source.seconds
            fetched = source.fetch(name, rows, self.trainer.state.global_step, everything=not once)
            seconds = time.perf_counter() - began
            source.seconds, seconds = harvesting + seconds, seconds + source.unreported_seconds
            source.unreported_seconds = 0.0
            if not agree(len(fetched.rows) >= 2 * size, ranks):
                return
            if sampler.hardness is None and self.trainer.auto.chooses_hardness(name):
                sampler.hardness = self.trainer.auto.choose_hardness(
                    name,
                    lambda: check_pairs(fetched.arrays[0], fetched.arrays[-1], size),
                    lambda: self._contradictions(name, fetched.rows, fetched),
                    sampler.rng(_CHOOSE, index),
                )
                cluster_size = self._cluster_size(sampler, size)
            new, scale = np.empty(planned, np.int64), agree(self._scale(name), ranks)
            with failing_together("planning", ranks), self.trainer.planner_for(name, scale):
                if self.trainer.is_world_process_zero():
                    new = self.plan_rows(name, fetched, tail[:planned], rng, seconds, cluster_size)[:planned]
                elif self._splits_work():
                    self._order(None, cluster_size, rng)
            new = agree_on_rows(new, ranks, self.trainer.args.device)
        tail[:planned] = self._shuffled(new, sampler, ranks) if self.trainer.args.shuffle_planned_batches else new
        sampler.replace_tail(tail, start, repeats=not once, cluster_size=cluster_size)

    def _rows_to_plan(
        self, tail: np.ndarray, sampler: PlannedBatchSampler, once: bool, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns the rows that a plan chooses from, for the (m,) places of `tail`, m or more.

        In the order of their ids, so that a plan depends on which rows are left and not on their last order. Where rows
        recur while others wait there are all of them to choose from, drawn before or not, unless they come in windows.
        """
        if not once and not self.trainer.window_steps:
            return np.arange(sampler.rows)
        rows = np.unique(tail)
        if len(rows) < len(tail):  # of a window that recurring rows were planned in before
            others = np.setdiff1d(np.arange(sampler.rows), rows)
            rows = np.union1d(rows, rng.choice(others, len(tail) - len(rows), replace=False))
        return rows

    def _cluster_size(self, sampler: PlannedBatchSampler, size: int) -> int:
        """The rows of a plan that stay together in a batch of `size` which is drawn from now on."""
        args, state = self.trainer.args, self.trainer.state
        chosen = sampler.hardness if args.chooses_hardness else None
        return rows_per_cluster(
            args.hardness.at(state.global_step, state.max_steps) if chosen is None else chosen, size
        )

    def _only_redeals(self, sampler: PlannedBatchSampler, cluster_size: int, once: bool) -> bool:
        """Whether a plan would find what the one in force found: nothing has changed but which rows are left."""
        return (
            once
            and sampler.plan_count > 0
            and not self.trainer.window_steps
            and sampler.passes == 1  # further ones are random rows
            and sampler.cluster_size == cluster_size
            and self.trainer.source.is_fixed
            and not self.trainer.plans_differently
            and self.trainer.args.cluster_schedule == "constant"
        )

    def _scale(self, name: str) -> float:
        """What the planner is to multiply products with; those of two views are halved."""
        source = self.trainer.source
        views = len(source.options.planned_views)
        return views * loss_scale(self.trainer.loss_of(name), source.mean_square_norm(name))

    def plan_rows(  # noqa: PLR0913 - one caller, which has all of these
        self,
        name: str,
        fetched: Fetched,
        tail: np.ndarray,
        rng: np.random.Generator,
        embed_seconds: float,
        cluster_size: int,
    ) -> np.ndarray:
        """Plans the rows that there are embeddings of, keeps what must not meet apart, and logs what came of it.

        `fetched` holds at least two batches of the (m,) rows of `tail`, which are to be ordered. Returns the (m,) rows
        in their new order; any rows where the planner does not cover each once.
        """
        planner, size = self.trainer.planner, self.trainer.contrast_size(name)
        began = time.perf_counter()
        once = abilities_of(planner).covers_each_row_once
        rows, arrays, planned = fetched.rows, fetched.arrays, fetched.planned
        if once and (rest := len(rows) % size):
            keep = np.sort(rng.choice(len(rows), len(rows) - rest, replace=False))
            rows, arrays = rows[keep], [array[keep] for array in arrays]
            planned = None if planned is None else [array[keep] for array in planned]
        pairs = check_pairs(arrays[0], arrays[-1], size)  # one column if one is planned on
        on = pairs if planned is None else check_pairs(planned[0], planned[-1], size)
        against = self._contradictions(name, rows, fetched)
        self.trainer.planner = configured(self.trainer.planner, contradictions=against)  # until `planner_for` ends
        order = self._order_clusters(on, cluster_size, size, rng)
        if not once:
            new = rows[check_batches(order, len(rows), size, repr(planner))]
            if (shared := self.trainer.planned_samplers[name].shared_values) is not None:
                new = shared.replace_clashing(new, size, rng)
        else:
            # Rows without embeddings fill batches of their own, in the order that they had.
            new = rows[check_order(order, len(rows), repr(planner))]
            new = self._separated(np.concatenate([new, tail[~np.isin(tail, rows)]]), tail, name)
        plan = MadePlan(name, rows, pairs, new, size, cluster_size == size, against, fetched.ages, len(order))
        quality = self.records.measure(plan)
        plan_seconds = time.perf_counter() - began
        self.trainer.source.seconds += plan_seconds
        self.plans_made += 1
        self.records.log(plan, quality, {"embed_seconds": embed_seconds, "plan_seconds": plan_seconds})
        return new

    def _contradictions(self, name: str, rows: np.ndarray, fetched: Fetched) -> Contradictions | None:
        """Which of the (m,) rows are no negatives of each other, as the loss and the user have it; None if all are."""
        margin = self.trainer.args.planner_margin
        margin = guard_margin(self.trainer.loss_of(name)) if margin is None else margin
        # Of two views that are planned on none alone says what is false but the first, or a reference.
        judge = fetched.arrays if fetched.judged is None and fetched.planned is not None else fetched.judged
        if judge is not None:
            judge = [side[np.searchsorted(fetched.rows, rows)] for side in (judge[0], judge[-1])]
        found, shared = Contradictions(margin, judge), self.trainer.apart.contradicting[name]
        if shared:
            held = Contradictions(None, None, shared.held.starts, shared.held.values, shared.held.strong).of(rows)
            found = replace(held, margin=margin, judge=judge)
        return found or None

    def _splits_work(self) -> bool:
        """Whether all ranks plan; a user's own `plan_batches` is promised all rows, on the main one."""
        return not self.trainer.plans_differently and splits_work(self.trainer.planner, self.trainer.args.world_size)

    def _order_clusters(
        self, pairs: tuple[np.ndarray, np.ndarray], cluster_size: int, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The order on the main process: batches that the planner composed, or random ones of clusters that it did."""
        n = len(pairs[0])
        if cluster_size == batch_size:
            return self._order(pairs, batch_size, rng)
        # In whole clusters, so that each planner, and a user's own, gets what it is promised.
        left_out = np.sort(rng.choice(n, n % cluster_size, replace=False))
        kept = np.setdiff1d(np.arange(n), left_out, assume_unique=True)
        sides = pairs if not len(left_out) else (pairs[0][kept], pairs[1][kept])
        against = getattr(self.trainer.planner, "contradictions", None)
        if len(left_out) and against is not None:
            self.trainer.planner = configured(self.trainer.planner, contradictions=against.of(kept))
        order = self._order(sides, cluster_size, rng)
        if not abilities_of(self.trainer.planner).covers_each_row_once:
            found = check_batches(order, len(kept), cluster_size, repr(self.trainer.planner))
            whole, wanted = len(found) // batch_size * batch_size, n // batch_size * batch_size
            dealt = deal_clusters(kept[found], cluster_size, batch_size, rng)[: min(whole, wanted)]
            missing = rng.choice(n, wanted - len(dealt), replace=False)
            return without_repeats(np.concatenate([dealt, missing]), batch_size, n, rng)
        order = kept[check_order(order, len(kept), repr(self.trainer.planner))]
        return deal_clusters(np.concatenate([order, left_out]), cluster_size, batch_size, rng)

    def _order(
        self, pairs: tuple[np.ndarray, np.ndarray] | None, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The planner's order on the main process; the others come here, without rows, if they are to help."""
        if not self._splits_work():
            assert pairs is not None
            return np.asarray(self.trainer.plan_batches(*pairs, batch_size, rng))
        args = self.trainer.args
        return plan_with_all(self.trainer.planner, pairs, batch_size, rng, ranks=args.world_size, device=args.device)

    def _separated(self, order: np.ndarray, former: np.ndarray, name: str) -> np.ndarray:
        """The order with rows that share a text or group apart, as far as can be; `former` is that of the same rows."""
        sampler = self.trainer.planned_samplers[name]
        shared, sizes = sampler.shared_values, (sampler.contrast_size, sampler.batch_size)
        if shared is None:
            return order
        separated = shared.separate_for(order, *sizes)
        # The former batches of these rows, if they were better, and nobody who asks for no duplicates gets any.
        if self.trainer.args.no_duplicates and shared.clashes(separated, sizes[1]):
            return separated if shared.clashes(former, sizes[1]) else former.copy()
        return separated

    def _shuffled(self, order: np.ndarray, sampler: PlannedBatchSampler, ranks: int) -> np.ndarray:
        """Batches in random order; the batches that the ranks draw in one step stay side by side."""
        steps = order.reshape(-1, ranks * sampler.batch_size)
        return sampler.rng(_SHUFFLE, sampler.plan_count).permutation(steps).ravel()
