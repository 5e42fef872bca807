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
from gcbs_st.embeddings.encode import preserved_state
from gcbs_st.embeddings.source import INITIAL, Fetched
from gcbs_st.planners import check_order, name_of
from gcbs_st.planners.algorithms.clusters import deal_clusters, redeal_clusters, rows_per_cluster, without_repeats
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.base import abilities_of, check_batches, check_pairs, configured
from gcbs_st.planners.estimate import estimate_quality
from gcbs_st.planners.quality import PlanQuality
from gcbs_st.ranks import agree, agree_on_rows, failing_together
from gcbs_st.rows.columns import text_names
from gcbs_st.training.auto_hardness import choose_hardness
from gcbs_st.training.loss_facts import guard_margin, loss_scale, scores_dot_products
from gcbs_st.training.parallel_planning import plan_with_all, splits_work
from gcbs_st.training.plan_advice import advise_on_plan, masked_at_random

logger = logging.getLogger(__name__)

# Purposes of a sampler's generators.
_PLAN, _SHUFFLE, _CHOOSE = 1, 2, 5


class Replanner:
    """Plans the epochs of one trainer, and takes plans over from its checkpoints."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.plans_made = 0
        self._last_parts: dict[str, np.ndarray] = {}  # the batch of each row in the plan before, -1 for none

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
        cluster_size = self._cluster_size(sampler, size) if plan and not self.trainer.leaves_random(name) else 1
        if cluster_size == 1 or not (able.needs_embeddings or self.trainer.plans_differently):
            new = rng.permutation(np.sort(tail[:planned]))  # needs no embeddings
            new = self._separated(new, tail[:planned], name)
        elif self._only_redeals(sampler, cluster_size, once):
            new = tail[:planned]
            if cluster_size < size:  # otherwise the batches stay, which are apart as far as can be
                new = self._separated(redeal_clusters(new, cluster_size, size, rng), new, name)
        else:
            # In the order of their ids, so that a plan depends on which rows are left and not on their last order.
            # Where rows recur while others wait there are all of them to choose from, drawn before or not.
            rows = np.sort(tail[:planned]) if once else np.arange(sampler.rows)
            source = self.trainer.source
            began, harvesting = time.perf_counter(), source.seconds
            fetched = source.fetch(name, rows, self.trainer.state.global_step, everything=not once)
            seconds = time.perf_counter() - began
            source.seconds, seconds = harvesting + seconds, seconds + source.unreported_seconds
            source.unreported_seconds = 0.0
            if not agree(len(fetched.rows) >= 2 * size, ranks):
                return
            if sampler.hardness is None and self.trainer.chooses_hardness(name):
                sampler.hardness = self._choose_hardness(name, index, fetched, size)
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

    def _cluster_size(self, sampler: PlannedBatchSampler, size: int) -> int:
        """The rows of a plan that stay together in a batch of `size` which is drawn from now on."""
        args, state = self.trainer.args, self.trainer.state
        chosen = sampler.hardness if args.chooses_hardness else None
        return rows_per_cluster(
            args.hardness.at(state.global_step, state.max_steps) if chosen is None else chosen, size
        )

    def _choose_hardness(self, name: str, index: int, fetched: Fetched, size: int) -> float:
        """How hard "auto" makes the batches of a dataset in this run, the same on all ranks; said where it is not the hardest."""
        ranks, chosen, why = self.trainer.args.world_size, 1.0, ""
        with failing_together("planning", ranks):
            if self.trainer.is_world_process_zero():
                with preserved_state(
                    self.trainer.model
                ):  # a transform of the user's, which makes columns, may draw numbers
                    labels = self.trainer.data_collator.valid_label_columns
                    texts = text_names(self.trainer.source.parts[name].dataset, labels)
                pairs = check_pairs(fetched.arrays[0], fetched.arrays[-1], size)
                shared = self._contradictions(name, fetched.rows, fetched)
                rng = self.trainer.planned_samplers[name].rng(_CHOOSE, index)
                chosen, why = choose_hardness(pairs, shared, size, rng, has_negatives=len(texts) > 2)
        if chosen < 1:
            logger.info(
                "planner: auto composes the batches of %s at planner_hardness=%g. %s Set planner_hardness=1 for the hardest.",
                name or "the training set",
                chosen,
                why,
            )
        return agree(chosen, ranks)

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
        quality = self._measure(name, rows, pairs, new, size, against)
        if name not in self._last_parts:  # the first plan of this dataset, whose loss may be its own
            self._check_guard(name, pairs)
            advise_on_plan(self.trainer, name, pairs, new, size, quality, hardest=cluster_size == size)
        plan_seconds = time.perf_counter() - began
        self.trainer.source.seconds += plan_seconds
        self.plans_made += 1
        record: dict[str, float] = {} if quality is None else quality.logged()
        record |= {
            "planned_rows": len(order),
            "embed_seconds": round(embed_seconds, 4),
            "plan_seconds": round(plan_seconds, 4),
            "time_share": self.trainer.time_share(),
        }
        if (repeated := self._repeated(name, new, size)) is not None:
            record["repeated"] = repeated
        if len(fetched.ages):
            record |= {"embedding_age": float(fetched.ages.mean()), "embedding_age_max": float(fetched.ages.max())}
        self._report(name, record)
        prefix = f"gcbs/{name}/" if name else "gcbs/"
        self.trainer.log({prefix + key: value for key, value in record.items()})
        return new

    def _check_guard(self, name: str, pairs: tuple[np.ndarray, np.ndarray]) -> None:
        """Warns where the loss's guard would ignore much of what random batches hold: by the (m, d) unit rows of pairs."""
        margin, view = guard_margin(self.trainer.loss_of(name)), self.trainer.source.options.planned_views[0]
        of_model = view is None or view.name == INITIAL  # a reference's embeddings are not what the guard sees
        if margin is None or not of_model:
            return
        self.trainer.warn_of_guard(masked_at_random(pairs, margin))

    def _contradictions(self, name: str, rows: np.ndarray, fetched: Fetched) -> Contradictions | None:
        """Which of the (m,) rows are no negatives of each other, as the loss and the user have it; None if all are."""
        margin = self.trainer.args.planner_margin
        margin = guard_margin(self.trainer.loss_of(name)) if margin is None else margin
        # Of two views that are planned on none alone says what is false but the first, or a reference.
        judge = fetched.arrays if fetched.judged is None and fetched.planned is not None else fetched.judged
        if judge is not None:
            judge = [side[np.searchsorted(fetched.rows, rows)] for side in (judge[0], judge[-1])]
        found, shared = Contradictions(margin, judge), self.trainer.contradicting[name]
        if shared:
            held = Contradictions(None, None, shared.held.starts, shared.held.values, shared.held.strong).of(rows)
            found = replace(held, margin=margin, judge=judge)
        return found or None

    def _repeated(self, name: str, order: np.ndarray, size: int) -> float | None:
        """The share of pairs of rows in a batch that shared one in the plan before, too; None at the first.

        A window of a stream has other rows than the one before.
        """
        part = np.full(self.trainer.planned_samplers[name].rows, -1)
        whole = order[: len(order) // size * size]
        part[whole] = np.arange(len(whole)) // size
        last, self._last_parts[name] = self._last_parts.get(name), part
        if last is None or len(last) != len(part) or self.trainer.feed is not None:
            return None
        met = np.sort(last[whole].reshape(-1, size), axis=1)
        pairs = sum(int(((run * (run - 1)) // 2).sum()) for run in map(_run_lengths, met))
        return pairs / max(1, len(met) * size * (size - 1) // 2)

    def _measure(  # noqa: PLR0913 - one caller, which has all of these
        self,
        name: str,
        rows: np.ndarray,
        pairs: tuple[np.ndarray, np.ndarray],
        new: np.ndarray,
        size: int,
        against: Contradictions | None,
    ) -> PlanQuality | None:
        """The quality of the batches whose rows all have embeddings; None if there is no such batch, or no pair in them."""
        blocks = new[: len(new) // size * size].reshape(-1, size)
        measured = np.searchsorted(rows, blocks[np.isin(blocks, rows).all(axis=1)].ravel())
        are_pairs = self._are_pairs(name, rows)
        if not len(measured) or (are_pairs is not None and not are_pairs[measured].any()):
            return None
        scale = loss_scale(self.trainer.loss_of(name), self.trainer.source.mean_square_norm(name))
        return estimate_quality(*pairs, measured, size, scale=scale, are_pairs=are_pairs, contradictions=against)

    def _are_pairs(self, name: str, rows: np.ndarray) -> np.ndarray | None:
        """(m,) bool, False for rows whose label says that their texts do not belong together; None without labels."""
        dataset = self.trainer.source.parts[name].dataset
        labels = [one for one in self.trainer.data_collator.valid_label_columns if one in dataset.column_names]
        if not labels:
            return None
        values = np.asarray(dataset.with_format(None)[labels[0]][:])
        return values[rows] > 0 if values.ndim == 1 and np.issubdtype(values.dtype, np.number) else None

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


def _run_lengths(parts: np.ndarray) -> np.ndarray:
    """How often each number stands in an ascending array, those below 0 left out."""
    return np.unique(parts[parts >= 0], return_counts=True)[1]
