"""What cannot be planned, refused before anything costly has run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gcbs_st.embeddings.source import INITIAL
from gcbs_st.planners import name_of
from gcbs_st.planners.base import abilities_of
from gcbs_st.training.loss_facts import unwrapped
from gcbs_st.training.loss_states import find_identity_losses, find_row_losses
from gcbs_st.training.sharding import fsdp_version, is_sharded, is_zero_3

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
    if is_sharded(trainer):
        _refuse_sharded(trainer)
    reasons = {
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


def refuse_mixing(args: Any, names: Sequence[str], is_stream: bool) -> None:
    """Raises a ValueError for weights and sub-batches of other datasets than there are; one without a name is "".

    `names` are those of the training set, of which there is one if it `is_stream`.
    """
    for field, given, nothing in (
        ("dataset_weights", args.dataset_weights, None),
        ("sub_batches", args.sub_batches, 1),
    ):
        if given != nothing and len(names) < 2:
            there = "an IterableDataset" if is_stream else f"one dataset{f', {names[0]!r}' if names[0] else ''}"
            raise ValueError(f"{field}: got {given!r} with {there}, expected a DatasetDict of several. Leave it out.")
    if isinstance(args.dataset_weights, Mapping):
        unknown = [name for name in args.dataset_weights if name not in names]
        missing = [name for name in names if name not in args.dataset_weights]
        if unknown or missing:
            what = f"of {unknown[0]!r}" if unknown else f"without {missing[0]!r}"
            raise ValueError(
                f"dataset_weights: got weights {what}, expected one for each of the datasets {list(names)}; 0 leaves a dataset "
                "out."
            )


def refuse_sub_batches(trainer: Any) -> None:
    """Raises a ValueError for a loss that keeps one pass until it is trained, where a batch takes several.

    The cached losses of older hosts: they would train the last sub-batch's gradients in the place of all others'.
    """
    losses = trainer.loss.values() if isinstance(trainer.loss, dict) else [trainer.loss]
    kept = [layer for loss in losses for layer in unwrapped(loss) if "cache" in vars(layer)]
    if trainer.args.sub_batches > 1 and kept:
        raise ValueError(
            f"sub_batches: got {trainer.args.sub_batches} with {type(kept[0]).__name__}, which keeps the gradients of one "
            "pass only. Use sentence-transformers 6.2 or newer, whose cached losses keep those of each, or a loss that is not "
            "cached."
        )


def refuse_stream(trainer: Any) -> None:
    """Raises a ValueError where a stream is to be trained in a way that needs rows which can be read again."""
    args = trainer.args
    kept = [type(loss).__name__ for loss in find_row_losses(trainer.loss)]
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
        "mask_by_identity": (
            bool(find_identity_losses(trainer.loss)),
            True,
            "False: which rows are in a batch of a stream is not told to the loss. Rows that are no negatives of each "
            "other are kept apart within each window",
        ),
    }
    for name, (is_used, got, expected) in reasons.items():
        if is_used:
            raise ValueError(f"{name}: got {got} with an IterableDataset, expected {expected}.")


def _refuse_sharded(trainer: Any) -> None:
    """Raises a ValueError for plans that need more of a sharded model than its training passes.

    A process that embeds rows on its own waits for the weights of others, which embed other numbers of rows, or none.
    """
    args, views = trainer.args, trainer.auto.views
    by_model = "model" in [view for view in views if isinstance(view, str)]
    zero, version = is_zero_3(trainer), fsdp_version(trainer)
    run = "DeepSpeed ZeRO-3" if zero else "FSDP"
    whole = "DDP, or ZeRO 1 or 2" if zero else "DDP"
    harvest = f"Use embedding_source='harvest', first_plan='random', or {whole}"
    alone = "which embeds rows by a model that no process holds whole"
    if version == 1:
        raise ValueError(
            "FSDP: got version 1, expected version 2, whose model is the one that the trainer was given. Use "
            "fsdp_config={'version': 2}, or fsdp_version: 2 in the configuration of accelerate, with "
            "embedding_source='harvest', first_plan='random'; or DDP."
        )
    if by_model and args.embedding_source != "harvest":
        raise ValueError(f"{run}: got embedding_source={args.embedding_source!r}, {alone}. {harvest}.")
    if by_model and args.first_plan != "random":
        raise ValueError(f"{run}: got first_plan={args.first_plan!r}, {alone}. {harvest}.")
    if by_model and args.embedding_max_age is not None:
        raise ValueError(
            f"{run}: got embedding_max_age={args.embedding_max_age}, {alone}. {harvest}, and leave it at None."
        )
    if by_model and not abilities_of(trainer.planner).covers_each_row_once:
        raise ValueError(
            f"{run}: got the planner {name_of(trainer.planner)!r}, which asks for embeddings of all rows at every plan, "
            f"but harvested are those that were trained. Use a planner that covers each row once, or {whole}."
        )
    for view in (*views, args.planner_reference):
        if view is not None and not (isinstance(view, str) and view == "model"):
            _refuse_shared_reference(trainer, run, view, harvest)
    for loss in find_row_losses(trainer.loss):
        if loss.embeds_rows:
            raise ValueError(
                f"{run}: got {type(loss).__name__}, which embeds rows beside those of the batch, in one process more of "
                f"them than in another, so that these would wait for each other's weights. Use another loss, or {whole}."
            )


def _refuse_shared_reference(trainer: Any, run: str, view: Any, harvest: str) -> None:
    """Raises a ValueError for fixed embeddings whose model a process does not hold whole."""
    if isinstance(view, str) and view == INITIAL:
        raise ValueError(
            f"{run}: got the view {view!r}, which embeds rows by a model that no process holds whole. {harvest}, or a "
            "reference model that is not trained."
        )
    # Both make transformers load any model in parts: every parameter, or all but those of the first process.
    if is_zero_3(trainer):
        raise ValueError(f"{run}: got a reference model, which DeepSpeed would take apart as well. {harvest}.")
    if getattr(trainer.accelerator.state.fsdp_plugin, "cpu_ram_efficient_loading", False):
        raise ValueError(
            f"{run}: got a reference model together with cpu_ram_efficient_loading, which loads the weights of any model "
            f"on one process only. Leave cpu_ram_efficient_loading at False. Or: {harvest[0].lower()}{harvest[1:]}."
        )
    trained = set(map(id, trainer.model.modules()))
    if hasattr(view, "modules") and any(id(module) in trained for module in view.modules()):
        raise ValueError(
            f"{run}: got a reference model that shares modules with the model that is trained, and that no process holds "
            f"whole. Give a copy of its own. Or: {harvest[0].lower()}{harvest[1:]}."
        )


def refuse_sampler(args: Any) -> None:
    """Raises a ValueError for a batch sampler that is neither the default of the host nor `no_duplicates`."""
    if getattr(args.batch_sampler, "name", None) not in ("BATCH_SAMPLER", "NO_DUPLICATES", "NO_DUPLICATES_HASHED"):
        raise ValueError(
            f"batch_sampler: got {args.batch_sampler!r}, but which rows share a batch is the planner's to decide. "
            "Use batch_sampler or no_duplicates, or train with the host's own trainer."
        )
