"""What cannot be planned, refused before anything costly has run."""

from __future__ import annotations

from typing import Any

from gcbs_st.training.loss_states import find_row_losses

# Trainers by the class of the host's models.
_TRAINERS = {
    "SparseEncoder": "GCBSSparseEncoderTrainer",
    "MultiVectorEncoder": "GCBSMultiVectorEncoderTrainer",
    "SentenceTransformer": "GCBSTrainer",
    "CrossEncoder": "",
}


def refuse_model(model: Any, trainer_class: type) -> None:
    """Raises a ValueError for a model of the host that belongs to another trainer, or to none."""
    classes = [one.__name__ for one in type(model).__mro__]
    kind = next((name for name in classes if name in _TRAINERS), None)
    if kind is None or _TRAINERS[kind] in [one.__name__ for one in trainer_class.__mro__]:
        return
    advice = f"Use {_TRAINERS[kind]}" if _TRAINERS[kind] else "It embeds no text, so there is nothing to plan on"
    raise ValueError(f"model: got a {kind} in {trainer_class.__name__}, expected the model of this trainer. {advice}.")


def refuse_unsupported(trainer: Any) -> None:
    """Raises a ValueError if a step would train on other rows than those that were planned for it."""
    accelerator = trainer.accelerator
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    sharded = "Rows are embedded by each process on its own, which holds only a part of the weights. Use DDP"
    reasons = {
        "FSDP": (trainer.is_fsdp_enabled, sharded),
        "DeepSpeed ZeRO-3": (plugin is not None and plugin.zero_stage == 3, f"{sharded}, or ZeRO 1 or 2"),
        "accelerator_config.dispatch_batches": (
            bool(accelerator.dispatch_batches),
            "The main process would read the batches of all and cut them anew. Leave it at None",
        ),
        "accelerator_config.split_batches": (
            bool(accelerator.split_batches) and trainer.args.world_size > 1,
            "Each process would train on a part of a planned batch. Leave it at False and give "
            "per_device_train_batch_size the rows of one process",
        ),
    }
    for what, (is_used, why) in reasons.items():
        if is_used:
            raise ValueError(f"{what}: got a run that uses it, expected one without. {why}.")


def refuse_stream(trainer: Any) -> None:
    """Raises a ValueError where a stream is to be trained in a way that needs rows which can be read again."""
    args = trainer.args
    losses = trainer.loss.values() if isinstance(trainer.loss, dict) else [trainer.loss]
    kept = [type(one).__name__ for loss in losses for one in find_row_losses(loss)]
    reasons = {
        "embedding_source": (
            args.embedding_source == "harvest",
            args.embedding_source,
            "encode: a row of a stream passes once, and what is harvested of it comes too late for its batch",
        ),
        "replan_steps": (
            args.replan_steps != 0,
            args.replan_steps,
            "0: each window of a stream is planned once. planning_window says how many rows that is",
        ),
        "dataloader_num_workers": (
            args.dataloader_num_workers > 0,
            args.dataloader_num_workers,
            "0: rows are planned where the model is, in the process that trains. The next window is read beside it",
        ),
        "loss": (bool(kept), ", ".join(kept), "a loss that keeps nothing of rows, which pass only once"),
    }
    for name, (is_used, got, expected) in reasons.items():
        if is_used:
            raise ValueError(f"{name}: got {got} with an IterableDataset, expected {expected}.")


def refuse_sampler(args: Any) -> None:
    """Raises a ValueError for a batch sampler that is neither the default of the host nor `no_duplicates`."""
    if getattr(args.batch_sampler, "name", None) not in ("BATCH_SAMPLER", "NO_DUPLICATES", "NO_DUPLICATES_HASHED"):
        raise ValueError(
            f"batch_sampler: got {args.batch_sampler!r}, but which rows share a batch is the planner's to decide. "
            "Use batch_sampler or no_duplicates, or train with the host's own trainer."
        )
