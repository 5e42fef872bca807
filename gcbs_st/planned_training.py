"""What any trainer of the host's needs to compose its training batches from the model's own embeddings: a mixin.

The way of a plan: `ReplanCallback` says when, the `Replanner` fetches embeddings, asks the planner and hands the
order to the `PlannedBatchSampler`. This module is what the host calls and what users override; the trainers
themselves (`trainer`, `sparse_trainer`, `multi_vector_trainer`) say whose trainer and arguments they stand beside.

A `CrossEncoder` has no trainer here: it scores pairs of texts and embeds none, so a batch is no set of negatives
to be composed. Mine its negatives with an embedding model instead.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gcbs_st.arguments import PlanningArguments
from gcbs_st.callback import ReplanCallback
from gcbs_st.checkpoint import last_whole_checkpoint, write_plan
from gcbs_st.corpus import require_map_style
from gcbs_st.embeddings import TextColumn, View, sentence_embedding
from gcbs_st.harvest import ROWS_KEY
from gcbs_st.kept_rows import KeptRows
from gcbs_st.model_card import MethodCallback
from gcbs_st.planned_loading import PlannedLoading
from gcbs_st.planning import fingerprint, refuse_model
from gcbs_st.ranks import wait_for_all
from gcbs_st.replanner import Replanner
from gcbs_st.row_states import RowStates
from gcbs_st.sources import EmbeddingSource

logger = logging.getLogger(__name__)


class PlannedTraining(PlannedLoading):
    """Decides which rows train together, in front of one of the host's trainers.

    Takes what the host's trainer takes. At the start of each epoch, and every `replan_steps` steps, the
    rows are embedded with the model as it is, a planner orders them, and blocks of that order are the
    batches. Loss, model and everything else stay the host's. With the host's own arguments our fields have
    their defaults. To plan in a way of your own, override `plan_batches`.
    """

    training_args_class: type[PlanningArguments]

    def __init__(
        self, model: Any = None, args: Any = None, train_dataset: Any = None, *rest: Any, **kwargs: Any
    ) -> None:
        """Takes the host's arguments, by position or name.

        Args:
            model: as in the host.
            args: of `training_args_class`, or the host's own.
            train_dataset: a `Dataset` or `DatasetDict` of pairs, triplets or n-tuples of text.
            rest: the host's further arguments, in its order.
            kwargs: the host's further arguments, by name.

        Raises:
            TypeError: an IterableDataset, whose rows cannot be put in an order.
            ValueError: the model of another trainer; what the host or `training_args_class` refuses.
        """
        if train_dataset is not None:
            require_map_style(train_dataset)
        refuse_model(model, type(self))
        if args is not None:
            args = self.training_args_class.from_plain(args)
        self.resume_folder: str | None = None
        self._resumed_from: str | None = None
        self._run_folder: Path | None = None
        self.kept_rows = KeptRows(self, super().collect_features)
        self.began = 0.0
        self._fingerprint: str | None = None
        self._take_planner(args if args is not None else self.training_args_class("unused"))
        super().__init__(model, args, train_dataset, *rest, **kwargs)
        self._show_progress()
        self.replanner = Replanner(self)
        self.add_callback(ReplanCallback(self._begin_epoch, self.replanner.replan_tails, self._steps_an_epoch))
        self.add_callback(MethodCallback(self))

    # ---------------------------------------------------------------- for users to override

    def plan_batches(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns an order of the rows whose consecutive blocks are the batches. Override it to plan in your own way.

        Called on the main process, with the rows that are to be drawn next.

        Args:
            anchors: (n, d) float32, unit rows.
            positives: (n, d) float32, unit rows; row i is the positive of anchor i.
            batch_size: rows a batch; n is a multiple of it.
            rng: depends on seed, epoch and number of the plan alone.

        Returns:
            (n,) integers, a bijection of 0..n-1.
        """
        return self.planner.plan(anchors, positives, batch_size, rng)

    @property
    def plans_differently(self) -> bool:
        """Whether `plan_batches` is overridden, so that it may want embeddings whatever the planner."""
        return type(self).plan_batches is not PlannedTraining.plan_batches

    def planning_view(self) -> View:
        """Returns what is planned on of the outputs of a pass; for trainers of models without a sentence embedding."""
        return sentence_embedding

    def as_trained(self, column: TextColumn, place: int) -> TextColumn:
        """Returns a column with all that training says of its texts; for hosts that say more than prompt and route.

        Args:
            column: that is planned on, with its prompt and route.
            place: among the columns of texts.
        """
        return column

    # ---------------------------------------------------------------- what the host calls

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the host's loader over samplers of ours, and opens what is kept of its rows."""
        self._renew_planner()
        # Again, where the host starts anew with smaller batches after it ran out of memory.
        self.resume_folder = self._resumed_from
        loader = super().get_train_dataloader()
        self.kept_rows.open(loader, self._run_folder or Path(str(self.args.output_dir)))
        return loader

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trains as the host does; a resumed run draws the batches that the interrupted one would have drawn.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest whole one in `output_dir`, or
                in the trial's own folder.
            trial: of a hyper-parameter search.
            args: the host's.
            kwargs: the host's.

        Returns:
            The host's `TrainOutput`.

        Raises:
            ValueError: True was given, but there is no whole checkpoint.
        """
        self._run_folder = Path(str(self._get_output_dir(trial)))
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
            self.kept_rows.close()
            self._resumed_from = self._run_folder = None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes the loss as the host does, tells it which rows it sees if it asks, and harvests their embeddings.

        Args:
            model: the host's.
            inputs: a batch; one of the training loader holds the ids of its rows.
            args: the host's.
            kwargs: the host's.

        Returns:
            The host's loss.
        """
        rows = inputs.pop(ROWS_KEY, None)
        if rows is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with self.kept_rows.watching(rows, self.state.global_step):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
        """Returns the host's features and labels; each text of a training batch with a number beside it.

        Args:
            inputs: the host's.
        """
        features, labels = super().collect_features(inputs)
        self.kept_rows.number(features)
        return features, labels

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, and in a checkpoint the plan in force.

        The plan is written here, not in `on_save`: that event comes after the host has written the state
        which makes a checkpoint whole, and after it has deleted older checkpoints, so a run killed in
        between would be left with nothing to resume its batches from.

        Args:
            output_dir: the folder.
            _internal_call: the host's.
        """
        in_checkpoint = output_dir is not None and Path(output_dir).name.startswith(PREFIX_CHECKPOINT_DIR)
        if output_dir is None or not (in_checkpoint and self.is_in_train):
            super().save_model(output_dir, _internal_call)
            return
        with_plan = not self.args.save_only_model
        if with_plan:
            self.kept_rows.sync()  # all processes save, but only one writes
        if not self.args.should_save:
            super().save_model(output_dir, _internal_call)
            return
        # An earlier run in the same folder may have left a whole checkpoint of this step. Without its state
        # it does not look whole while its other files are overwritten.
        (Path(output_dir) / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super().save_model(output_dir, _internal_call)
        if with_plan:
            self.kept_rows.save(Path(output_dir))
            states = {name: sampler.state_dict() for name, sampler in self.planned_samplers.items()}
            write_plan(output_dir, states, self.training_set_fingerprint())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as the host does, and beside the training loss which share of the negatives a guarded loss masked.

        Args:
            logs: what is logged.
            args: the host's.
            kwargs: the host's.
        """
        masked = getattr(self.loss, "last_masked", None) if "loss" in logs else None
        super().log(logs if masked is None else {**logs, "gcbs/masked": float(masked)}, *args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves this process's random numbers as the host does, and waits for the others'.

        The main process goes on to write the state that makes a checkpoint whole.
        """
        super()._save_rng_state(output_dir)
        wait_for_all(self.args.world_size)

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
        assert self.kept_rows.source is not None
        return self.kept_rows.source

    @property
    def row_states(self) -> RowStates | None:
        """The states that losses keep of rows, since the trainer first trained."""
        return self.kept_rows.row_states

    def _begin_epoch(self, epoch: int, plan: bool) -> None:
        self._mix_for_epoch(epoch)
        self.replanner.begin_epoch(epoch, plan)

    def _take_planner(self, args: PlanningArguments) -> None:
        self.planner = args.make_planner()
        self.clusters_at_end: int = getattr(self.planner, "clusters_per_batch", 1)
        self._planner_of = (args.planner, args.planner_options)

    def _renew_planner(self) -> None:
        """Makes the planner anew where a search for hyper-parameters changed the arguments that describe it."""
        self.args.check_planning()
        if self._planner_of != (self.args.planner, self.args.planner_options):
            self._take_planner(self.args)
            self._show_progress()

    def _show_progress(self) -> None:
        if hasattr(self.planner, "show_progress"):
            self.planner.show_progress = not self.args.disable_tqdm and self.is_world_process_zero()

    def training_set_fingerprint(self) -> str:
        """Returns a text that another training set would not have; made once."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.train_dataset)
        return self._fingerprint
