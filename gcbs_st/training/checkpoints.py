"""What the host calls to write a checkpoint and to read one: the plan beside the model, and sharded models whole."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME, Trainer

from gcbs_st.batches.checkpoint import write_plan
from gcbs_st.ranks import wait_for_all
from gcbs_st.training.loading import PlannedLoading
from gcbs_st.training.row_memory import RowMemory
from gcbs_st.training.sharding import complete_state, fsdp_version, is_zero_3, whole_weights, wrapped_as_a_whole


class PlannedCheckpoints(PlannedLoading):
    """A checkpoint of a run that plans holds the plan in force, and is whole when the host's state is there."""

    row_memory: RowMemory
    _resumed_from: str | None = None
    _saves_checkpoint = False

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Loads weights as the host does, after those that a plan may go by were put aside."""
        # Of a model that was there before, `train` has put them aside.
        if self.model_init is not None and self._resumed_from is not None and self.row_memory.source is None:
            self.row_memory.remember_initial()
        if self.is_fsdp_enabled:
            # That of sentence-transformers takes no model, and would put whole weights into shards.
            Trainer._load_from_checkpoint(self, *args, **kwargs)
        else:
            super()._load_from_checkpoint(*args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Prepares model and optimizer as the host does; a sharded model also where accelerate would fail on it."""
        with wrapped_as_a_whole(self.model) if fsdp_version(self) == 2 else nullcontext():
            return super()._prepare_for_training(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, and in a checkpoint the plan in force.

        The plan is written here, not in `on_save`: that event comes after the host has written the state
        which makes a checkpoint whole, and after it has deleted older checkpoints, so a run killed in
        between would be left with nothing to resume its batches from.
        """
        # A user may save a model on one process, and under any name, so nothing is said to the other ranks here.
        if output_dir is None or not (self._saves_checkpoint and self.args.should_save):
            super().save_model(output_dir, _internal_call)
            return
        # An earlier run in the same folder may have left a whole checkpoint of this step. Without its state
        # it does not look whole while its other files are overwritten.
        (Path(output_dir) / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super().save_model(output_dir, _internal_call)
        if not self.args.save_only_model:
            self.row_memory.save(Path(output_dir))
            if self.feed is not None:
                self.feed.save(output_dir)
                return
            states = {name: sampler.state_dict() for name, sampler in self.planned_samplers.items()}
            write_plan(output_dir, states, self.training_set_fingerprint())

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Saves the model as the host does, of a sharded one the whole weights that the host has gathered.

        The host comes here on all processes then, and its models write what they hold, which is a shard each.
        """
        if not (fsdp_version(self) == 2 or is_zero_3(self)):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            with whole_weights(getattr(self.model, "_orig_mod", self.model), state_dict or {}):
                super()._save(output_dir, state_dict)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint as the host does, on all ranks, after they have told each other what they know."""
        if not self.args.save_only_model:
            self.row_memory.sync()
        self._saves_checkpoint = True
        try:
            super()._save_checkpoint(*args, **kwargs)
        finally:
            self._saves_checkpoint = False

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Saves them as the host does; of a sharded model a state that torch takes when the run is resumed."""
        if fsdp_version(self) == 2:
            optimizer: Any = self.optimizer
            complete_state(getattr(optimizer, "optimizer", optimizer))
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves this process's random numbers as the host does, and waits for the others'.

        The main process goes on to write the state that makes a checkpoint whole.
        """
        super()._save_rng_state(output_dir)
        wait_for_all(self.args.world_size)
