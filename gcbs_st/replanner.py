"""What is done when a plan is due: rows that are left, their embeddings, the planner, and the order that comes of it.

`ReplanCallback` says when; the trainer is asked for everything that belongs to it. All processes come here
alike, the main one plans, with the others' help where the planner's work can be split, and all take its order.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from gcbs_st.checkpoint import read_plan
from gcbs_st.parallel_planning import plan_with_all, splits_work
from gcbs_st.planners import RandomPlanner, check_order
from gcbs_st.planners.base import check_batches
from gcbs_st.planning import clusters_at, gathers_negatives, loss_scale, plan_record
from gcbs_st.projection import RandomProjection
from gcbs_st.ranks import agree, agree_on_rows, failing_together
from gcbs_st.sampler import PlannedBatchSampler
from gcbs_st.source_parts import Fetched

logger = logging.getLogger(__name__)

# Purposes of a sampler's generators.
_PLAN, _SHUFFLE = 1, 2


class Replanner:
    """Plans the epochs of one trainer, and takes plans over from its checkpoints."""

    def __init__(self, trainer: Any) -> None:
        """Takes whom to plan for.

        Args:
            trainer: a `GCBSTrainer`.
        """
        self.trainer = trainer

    def begin_epoch(self, epoch: int, plan: bool) -> None:
        """Starts an epoch, with the plan of the checkpoint that the run resumes from or a new one.

        Args:
            epoch: counted from 0.
            plan: make a plan; else the batches are random.
        """
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
        self.trainer.source.load(Path(folder))
        if self.trainer.row_states is not None:
            self.trainer.row_states.load(Path(folder))
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
        """Plans the rows of all datasets that are not drawn yet.

        Args:
            plan: make plans; else the batches are random.
        """
        for index, name in enumerate(self.trainer.planned_samplers):
            self._replan_tail(name, index, plan)

    def _replan_tail(self, name: str, index: int, plan: bool) -> None:
        """Plans the rows of one dataset that are not drawn yet, in whole steps of all ranks."""
        sampler, ranks = self.trainer.planned_samplers[name], self.trainer.args.world_size
        start = sampler.cursor
        # The batches that do not fill a step of all ranks are never drawn. They stay at the end as they
        # are, random rows, so that it is not always the end of a plan that is lost.
        steps = (len(sampler) - start) // ranks
        if steps * ranks < 2:
            return
        stop = (start + steps * ranks) * sampler.batch_size
        tail = sampler.order[start * sampler.batch_size :].copy()
        planned = stop - start * sampler.batch_size
        overlapping: bool = getattr(self.trainer.planner, "overlapping", False)
        rng = sampler.rng(_PLAN, sampler.plan_count, index)
        blind = isinstance(self.trainer.planner, RandomPlanner) and not self.trainer.planner.measure
        if not plan or (blind and not self.trainer.plans_differently):
            new = self._separated(rng.permutation(np.sort(tail[:planned])), name)  # needs no embeddings
        else:
            # In the order of their ids, so that a plan depends on which rows are left and not on their last order.
            # Where rows recur while others wait there are all of them to choose from, drawn before or not.
            rows = np.arange(sampler.rows) if overlapping else np.sort(tail[:planned])
            began, harvesting = time.perf_counter(), self.trainer.source.seconds
            fetched = self.trainer.source.fetch(name, rows, self.trainer.state.global_step, everything=overlapping)
            seconds = time.perf_counter() - began
            self.trainer.source.seconds = harvesting + seconds
            size = self.contrast_rows(name)
            if not agree(len(fetched.rows) >= 2 * size, ranks):
                return
            self._set_progress(sampler.epoch, size)
            new = np.empty(planned, np.int64)
            with failing_together("planning", ranks):
                if self.trainer.is_world_process_zero():
                    new = self.plan_rows(name, fetched, tail[:planned], rng, seconds)[:planned]
                elif self._splits_work():
                    self._order(None, size, rng)
            new = agree_on_rows(new, ranks, self.trainer.args.device)
        tail[:planned] = self._shuffled(new, sampler, ranks) if self.trainer.args.shuffle_planned_batches else new
        sampler.replace_tail(tail, start, repeats=overlapping)

    def plan_rows(
        self, name: str, fetched: Fetched, tail: np.ndarray, rng: np.random.Generator, embed_seconds: float
    ) -> np.ndarray:
        """Plans the rows that there are embeddings of, keeps what must not meet apart, and logs what came of it.

        Args:
            name: of the dataset.
            fetched: its rows that there are embeddings of, at least two batches.
            tail: (m,) all rows to be ordered, as they are ordered now.
            rng: of this plan.
            embed_seconds: what the embeddings cost.

        Returns:
            (m,) the rows in their new order; any rows where batches overlap.
        """
        planner, size = self.trainer.planner, self.contrast_rows(name)
        began = time.perf_counter()
        overlapping = getattr(planner, "overlapping", False)
        rows, anchors, positives = (
            fetched.rows,
            fetched.arrays[0],
            fetched.arrays[-1],
        )  # one if one column is planned on
        if not overlapping and (rest := len(rows) % size):
            keep = np.sort(rng.choice(len(rows), len(rows) - rest, replace=False))
            rows, anchors, positives = rows[keep], anchors[keep], positives[keep]
        order = self._order((anchors, positives), size, rng)
        if overlapping:
            new = rows[check_batches(order, len(rows), size, repr(planner))]
        else:
            # Rows without embeddings fill batches of their own, in the order that they had.
            new = rows[check_order(order, len(rows), repr(planner))]
            new = self._separated(np.concatenate([new, tail[~np.isin(tail, rows)]]), name)
        blocks = new[: len(new) // size * size].reshape(-1, size)
        # Measured on the batches whose rows all have embeddings.
        measured = blocks[np.isin(blocks, rows).all(axis=1)].ravel()
        if not overlapping and len(measured) < len(rows):
            kept = np.isin(rows, measured)
            rows, anchors, positives = rows[kept], anchors[kept], positives[kept]
        quality = plan_record(
            anchors,
            positives,
            np.searchsorted(rows, measured),
            size,
            self._scale(name),
            repeats=overlapping,
        )
        plan_seconds = time.perf_counter() - began
        self.trainer.source.seconds += plan_seconds
        record = {
            **quality,
            "planned_rows": len(order),
            "embed_seconds": round(embed_seconds, 4),
            "plan_seconds": round(plan_seconds, 4),
            "time_share": round(self.trainer.source.seconds / max(1e-9, time.perf_counter() - self.trainer.began), 4),
        }
        if len(fetched.ages):
            record |= {"embedding_age": float(fetched.ages.mean()), "embedding_age_max": float(fetched.ages.max())}
        prefix = f"gcbs/{name}/" if name else "gcbs/"
        self.trainer.log({prefix + key: value for key, value in record.items()})
        return new

    def _set_progress(self, epoch: int, size: int) -> None:
        """Tells the planner, on every process, what it does not know: how far the training has come."""
        planner, state = self.trainer.planner, self.trainer.state
        if hasattr(planner, "epoch"):
            planner.epoch = epoch
        if self.trainer.args.cluster_schedule == "curriculum":
            done = state.global_step / max(1, state.max_steps)
            planner.clusters_per_batch = clusters_at(done, size, self.trainer.clusters_at_end)

    def contrast_rows(self, name: str) -> int:
        """Returns how many rows are contrasted with one another, which is what is planned as one batch.

        Args:
            name: of the dataset.

        Returns:
            The rows of a batch, times the processes if the loss gathers the negatives of all.
        """
        rows: int = self.trainer.planned_samplers[name].batch_size
        return rows * (self.trainer.args.world_size if gathers_negatives(self._loss_of(name)) else 1)

    def _scale(self, name: str) -> float:
        """What the loss multiplies cosines with; only projected embeddings have norms that are kept."""
        view = self.trainer.source.options.view
        norm = view.mean_square_norm() if isinstance(view, RandomProjection) else 1.0
        return loss_scale(self._loss_of(name), norm)

    def _loss_of(self, name: str) -> Any:
        return self.trainer.loss.get(name) if isinstance(self.trainer.loss, dict) else self.trainer.loss

    def _splits_work(self) -> bool:
        """Whether all processes plan; a user's own `plan_batches` is promised all rows, on the main one."""
        return not self.trainer.plans_differently and splits_work(self.trainer.planner, self.trainer.args.world_size)

    def _order(
        self, pairs: tuple[np.ndarray, np.ndarray] | None, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The planner's order on the main process; the others come here, without rows, if they are to help."""
        if not self._splits_work():
            assert pairs is not None
            return np.asarray(self.trainer.plan_batches(*pairs, batch_size, rng))
        args = self.trainer.args
        return plan_with_all(
            self.trainer.planner, pairs, batch_size, rng, processes=args.world_size, device=args.device
        )

    def _separated(self, order: np.ndarray, name: str) -> np.ndarray:
        sampler = self.trainer.planned_samplers[name]
        if sampler.shared_values is None:
            return order
        # Where a step of all processes has no place for a row, at least its own process's batch should.
        for size in dict.fromkeys((self.contrast_rows(name), sampler.batch_size)):
            separated = sampler.shared_values.separate(order, size)
            if separated is not None:
                return np.asarray(separated)
        logger.warning(
            "No exchange of rows keeps duplicates apart in this plan; these rows keep their former batches."
        )
        start = sampler.cursor * sampler.batch_size
        return sampler.order[start : start + len(order)].copy()

    def _shuffled(self, order: np.ndarray, sampler: PlannedBatchSampler, ranks: int) -> np.ndarray:
        """Batches in random order; the batches that the ranks draw in one step stay side by side."""
        steps = order.reshape(-1, ranks * sampler.batch_size)
        return sampler.rng(_SHUFFLE, sampler.plan_count).permutation(steps).ravel()
