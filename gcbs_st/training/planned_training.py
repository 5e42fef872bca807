"""What any trainer of the host's needs to compose its training batches from the model's own embeddings: a mixin.

`ReplanCallback` says when to plan, the `Replanner` fetches embeddings, asks the planner and hands the order to the
`PlannedBatchSampler`. This module is what the host calls and what users override.

A `CrossEncoder` has no trainer here: it scores pairs of texts and embeds none, so a batch is no set of negatives to be
composed. Mine its negatives with an embedding model instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from gcbs_st.batches.checkpoint import last_whole_checkpoint
from gcbs_st.embeddings.source import EmbeddingSource
from gcbs_st.embeddings.views import View, sentence_embedding
from gcbs_st.planners.algorithms.clusters import clusters_at
from gcbs_st.planners.base import abilities_of, configured, order_checked_rows
from gcbs_st.rows.columns import TextColumn
from gcbs_st.rows.row_ids import ROWS_KEY, number_rows
from gcbs_st.rows.sub_batches import SUB_BATCHES_KEY, cut_batches
from gcbs_st.rows.training_set import RowFacts, require_rows
from gcbs_st.training.arguments import PlanningArguments
from gcbs_st.training.auto import AutoChoices
from gcbs_st.training.checkpoints import PlannedCheckpoints
from gcbs_st.training.loss_facts import contrasts_rows
from gcbs_st.training.loss_states import RowStates, find_identity_losses, needs_row_ids
from gcbs_st.training.model_card import MethodCallback
from gcbs_st.training.refusals import refuse_model
from gcbs_st.training.replan_callback import ReplanCallback, rows_per_step
from gcbs_st.training.replanner import Replanner
from gcbs_st.training.row_memory import RowMemory
from gcbs_st.training.rule import MASKED_AT_RANDOM
from gcbs_st.training.run_advice import advise_on_run

logger = logging.getLogger(__name__)

# Not "mps", which is of no use to a planner before somebody has measured it, nor "xla", which would compile each level
# of a tree anew. A planner that is told of them by name uses them.
_ACCELERATORS = ("cuda", "xpu", "npu")


class PlannedTraining(PlannedCheckpoints):
    """Decides which rows train together, in front of one of the host's trainers; see `gcbs_st.GCBSTrainer`.

    To plan in a way of your own, override `plan_batches`.
    """

    training_args_class: type[PlanningArguments]

    def __init__(
        self, model: Any = None, args: Any = None, train_dataset: Any = None, *rest: Any, **kwargs: Any
    ) -> None:
        refuse_model(model, type(self))
        # Before the host, which refuses a stream without max_steps in its own words.
        loss = kwargs.get("loss", rest[1] if len(rest) > 1 else None)
        losses = list(loss.values()) if isinstance(loss, dict) else [loss]
        if train_dataset is not None and any(one is None or contrasts_rows(one) for one in losses):
            require_rows(train_dataset)
        if args is not None:
            args = self.training_args_class.from_plain(args)
        self.resume_folder: str | None = None
        self._resumed_from = None
        self._run_folder: Path | None = None
        self.row_memory = RowMemory(self, super().collect_features)
        self.began = 0.0
        self.auto = AutoChoices(self)
        self._take_planner(args if args is not None else self.training_args_class("unused"))
        super().__init__(model, args, train_dataset, *rest, **kwargs)
        vars(self.args)["claimed"] = True
        self.refuse_unplannable()
        self.replanner = Replanner(self)
        calls = (self._begin_training, self._begin_epoch, self._replan_tails, self._steps_an_epoch)
        self._calendar = ReplanCallback(*calls, self.replanner.plan_next_passes)
        self.add_callback(self._calendar)
        self.add_callback(MethodCallback(self))

    # ---------------------------------------------------------------- for users to override

    def plan_batches(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns an order of the rows whose consecutive blocks are the batches. Override it to plan in your own way.

        Called on the main process, with the (n, d) float32 unit rows of anchors and positives that are to be drawn
        next, row i of the second being the positive of row i of the first; n is a multiple of `batch_size`. `rng`
        depends on seed, epoch and number of the plan alone. Returns (n,) integers, a bijection of 0..n-1.
        """
        return order_checked_rows(self.planner, anchors, positives, batch_size, rng)

    @property
    def plans_differently(self) -> bool:
        """Whether `plan_batches` is overridden, so that it may want embeddings whatever the planner."""
        return type(self).plan_batches is not PlannedTraining.plan_batches

    def planning_view(self) -> View:
        """Returns what is planned on of the outputs of a pass; for trainers of models without a sentence embedding."""
        return sentence_embedding

    def as_trained(self, column: TextColumn, position: int) -> TextColumn:
        """Returns a column with all that training says of its texts; for hosts that say more than prompt and route."""
        return column

    # ---------------------------------------------------------------- what the host calls

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the host's loader over samplers of ours; its batches carry the ids of their rows if anybody asks."""
        self._renew_planner()
        loader = super().get_train_dataloader()
        if self.args.sub_batches > 1:
            cut_batches(loader, self.sub_batch_size)
        harvests = self.args.embedding_source == "harvest" and self.planned_samplers
        if harvests or needs_row_ids(self.loss):
            number_rows(loader)
        return loader

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trains as the host does; a resumed run draws the batches that the interrupted one would have drawn.

        With `resume_from_checkpoint=True` it resumes from the newest whole checkpoint in `output_dir` or in the trial's
        own folder, and raises a ValueError if there is none.
        """
        self._run_folder = Path(str(self._get_output_dir(trial)))
        if resume_from_checkpoint and self.model_init is None:
            self.row_memory.remember_initial()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(str(self._run_folder))
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"resume_from_checkpoint=True, but {self._run_folder} holds no checkpoint that was written to its "
                    "end. Start without resuming."
                )
        self._resumed_from = resume_from_checkpoint or None
        self.began = time.perf_counter()
        try:
            return super().train(resume_from_checkpoint, trial, *args, **kwargs)
        finally:
            self.row_memory.close()
            self.row_memory.forget()
            if self.feed is not None:
                self.feed.close()
            self._resumed_from = self._run_folder = None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes the loss as the host does, tells it which rows it sees if it asks, and harvests their embeddings.

        That of a batch made of sub-batches is the mean of theirs, each computed as if it were the batch.
        """
        rows, parts = inputs.pop(ROWS_KEY, None), inputs.pop(SUB_BATCHES_KEY, None)
        if parts is not None:
            numbered = [{}] * len(parts) if rows is None else [{ROWS_KEY: ids} for ids in np.split(rows, len(parts))]
            losses = [
                self.compute_loss(model, {**part, **ids}, *args, **kwargs)
                for part, ids in zip(parts, numbered, strict=True)
            ]
            return sum(losses) / len(losses)  # of as many rows each
        if rows is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with self.row_memory.watching(rows, self.state.global_step):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
        """Returns the host's features and labels; each text of a training batch with a number beside it."""
        features, labels = super().collect_features(inputs)
        self.row_memory.number(features)
        return features, labels

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as the host does; with the loss what guards masked and the steps of weighted datasets, at the end the plans' time."""
        masked = getattr(self.loss, "last_masked", None) if "loss" in logs else None
        more = {} if masked is None else {"gcbs/masked": float(masked)}
        if more and find_identity_losses(self.loss):
            more["gcbs/identical"] = float(getattr(self.loss, "last_identical", 0.0))
        if more and self.args.planner == "random":  # of other planners the first plan tells
            self.warn_of_guard(more["gcbs/masked"] - more.get("gcbs/identical", 0.0))
        if "loss" in logs:
            done = self._calendar.steps_of_epoch(self.state) * self.args.gradient_accumulation_steps
            more |= {f"gcbs/{name}/step_share": share for name, share in self.steps_by_dataset(done).items()}
        if "train_runtime" in logs and self.row_memory.source is not None and self.replanner.plans_made:
            more["gcbs/time_share"] = self.time_share()
        super().log({**logs, **more} if more else logs, *args, **kwargs)

    def warn_of_guard(self, share: float) -> None:
        """Warns once if a guard masks more of the negatives of random batches, `share` in [0, 1], than can be false."""
        if share > MASKED_AT_RANDOM:
            self.warn_once(
                "guard",
                "The guarded loss ignores %.0f %% of the negatives of random batches. Few of these can be false: the model "
                "finds most texts alike, as encoders do that were never trained on pairs, and is no judge yet. Train with "
                "the plain loss, MultipleNegativesRankingLoss, or let a better model judge: GISTEmbedLoss.",
                100 * share,
            )

    def time_share(self) -> float:
        """Returns the share of this run's time until now that went into embedding, harvesting and planning."""
        return round(self.source.seconds / max(1e-9, time.perf_counter() - self.began), 4)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Returns the norm that the host logs, also of sparse gradients, on which its own computation fails."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if grad_norm is not None or not any(gradient.is_sparse for gradient in gradients):
            return super()._get_grad_norm(model, grad_norm)
        values = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
        return torch.nn.utils.get_total_norm(values)

    # ---------------------------------------------------------------- small facts

    @property
    def source(self) -> EmbeddingSource:
        """Where embeddings come from; there is one while the trainer trains."""
        assert self.row_memory.source is not None
        return self.row_memory.source

    @property
    def row_states(self) -> RowStates | None:
        """The states that losses keep of rows, since the trainer first trained."""
        return self.row_memory.row_states

    def _begin_training(self) -> None:
        """Opens what is kept of rows; on all ranks, where no user can come alone."""
        # Again, where the host starts anew with smaller batches after it ran out of memory.
        self.resume_folder = self._resumed_from
        self.auto.forget_rows()  # of a training set that may have been another
        for name in self.planned_samplers:
            self.check_clusters(name)
            self._check_window(name)
        if self.is_world_process_zero():
            self.auto.say()
            if self.planned_samplers:
                advise_on_run(self, self._calendar)
        if self.planned_samplers or needs_row_ids(self.loss):
            self.row_memory.open(self._run_folder or Path(str(self.args.output_dir)))

    def check_clusters(self, name: str) -> None:
        """Raises a ValueError if a batch cannot be made of as many clusters as the planner is asked for."""
        size = self.contrast_size(name)
        if size % self.clusters_at_end:
            raise ValueError(
                f"clusters_per_batch: got {self.clusters_at_end} with {size} rows that are contrasted with one another, "
                f"expected a divisor of {size}, so that all clusters have the same number of rows."
            )

    def _check_window(self, name: str) -> None:
        """Raises a ValueError if a window of rows holds less than two batches, among which there is nothing to choose."""
        steps, size = self.window_steps, self.contrast_size(name)
        if steps and steps * rows_per_step(self.args) < 2 * size:
            raise ValueError(
                f"planning_window: got {self.args.planning_window} rows, expected at least {2 * size}, two batches of "
                f"the {size} rows that are contrasted with one another: the batches of a window are composed of its rows."
            )

    def _begin_epoch(self, epoch: int, plan: bool) -> None:
        self.mix_for_epoch(epoch)
        if self.row_memory.source is None:
            return
        if self.feed is not None:
            folder, self.resume_folder = self.resume_folder, None
            self.feed.begin_epoch(folder)
        else:
            self.replanner.begin_epoch(epoch, plan)

    def _replan_tails(self, plan: bool) -> None:
        """Plans what is not drawn yet; of a stream that is the next window, which is planned when it is there."""
        if self.feed is None:
            self.replanner.replan_tails(plan)

    @property
    def window_steps(self) -> int:
        """The optimizer steps that a window of a training set that is no stream is drawn in; 0 without windows."""
        return 0 if self.feed is not None else ReplanCallback.window_steps(self.args)

    def plans_now(self) -> bool:
        """Whether batches that are drawn from now on are planned ones: not while warming up, cooling down or not training."""
        return self.row_memory.source is not None and ReplanCallback.plans(self.args, self.state)

    def take_window(self, window: Any, facts: RowFacts, batch_size: int, seed: int) -> None:
        """Makes some rows of a stream what is embedded and planned next."""
        super().take_window(window, facts, batch_size, seed)
        if self.row_memory.source is not None:
            self.row_memory.source.take_window("", window)

    def _take_planner(self, args: PlanningArguments) -> None:
        self.planner = args.make_planner()
        self.clusters_at_end: int = abilities_of(self.planner).clusters_per_batch or 1
        self._planner_of = (args.planner, args.planner_options)

    def _renew_planner(self) -> None:
        """Makes the planner anew where a search for hyper-parameters changed the arguments that describe it."""
        self.args.check_planning()
        if self._planner_of != (self.args.planner, self.args.planner_options):
            self._take_planner(self.args)

    def clusters_at(self, step: int, size: int) -> int:
        """Returns how many clusters the curriculum makes a batch of `size` rows of, after `step` optimizer steps."""
        return clusters_at(step / max(1, self.state.max_steps), size, self.clusters_at_end)

    @contextmanager
    def planner_for(self, name: str, scale: float) -> Iterator[None]:
        """Lets `planner` know, meanwhile, what it plans for and how far training has come; the user's is not changed.

        `scale` is what the loss multiplies scores with.
        """
        own, size = self.planner, self.contrast_size(name)
        settings: dict[str, Any] = {
            "scale": scale,
            "device": accelerator_of(self.args.device),
            "epoch": self.planned_samplers[name].epoch,
            "show_progress": not self.args.disable_tqdm and self.is_world_process_zero(),
        }
        if self.args.cluster_schedule == "curriculum":
            settings["clusters_per_batch"] = self.clusters_at(self.state.global_step, size)
        self.planner = configured(own, **settings)
        try:
            yield
        finally:
            self.planner = own


def accelerator_of(device: torch.device) -> str | None:
    """Returns the name of the device that planners may work on unless they are told otherwise; None for the CPU.

    >>> accelerator_of(torch.device("cuda", 1)), accelerator_of(torch.device("cpu"))
    ('cuda:1', None)
    """
    return str(device) if device.type in _ACCELERATORS else None
