"""What a plan needs to know of the training set and the loss, and what is logged of it; no state, no trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from sentence_transformers.util import dot_score

from gcbs_st.arguments import PlanningArguments
from gcbs_st.corpus import corpus_hash
from gcbs_st.embeddings import View
from gcbs_st.quality import SCALE, plan_quality
from gcbs_st.ranks import on_one_node
from gcbs_st.source_parts import EMBEDDINGS_FOLDER, SourceOptions

# Trainers by the class of the host's models.
_TRAINERS = {
    "SparseEncoder": "GCBSSparseEncoderTrainer",
    "MultiVectorEncoder": "GCBSMultiVectorEncoderTrainer",
    "SentenceTransformer": "GCBSTrainer",
    "CrossEncoder": "",
}

# The quality that is logged with each plan is measured on about so many products of anchors and
# positives: a fraction of a second on two cores, small beside the embedding of the rows.
_MEASURED_PRODUCTS = 2**24


def parts_of(train_dataset: Dataset | DatasetDict) -> dict[str, Dataset]:
    """Returns the datasets by name, "" for the only one.

    Args:
        train_dataset: what the trainer trains on.

    Returns:
        One entry for each plan that is made.
    """
    return dict(train_dataset) if isinstance(train_dataset, Mapping) else {"": train_dataset}


def take_groups(
    train_dataset: Dataset | DatasetDict, column: str
) -> tuple[Dataset | DatasetDict, dict[str, list[Any]]]:
    """Returns the training set without its group column, which the host would embed as text, and the groups.

    Args:
        train_dataset: what the trainer was given.
        column: whose equal values mark rows that must not share a batch.

    Returns:
        The training set without the column, and by name of the dataset the (n,) groups of its rows.

    Raises:
        ValueError: a dataset that has no such column.
    """
    parts = parts_of(train_dataset)
    for name, part in parts.items():
        if column not in part.column_names:
            raise ValueError(
                f"group_column: the training set {name} has the columns {part.column_names}, but no {column!r}."
            )
    without = {name: part.remove_columns(column) for name, part in parts.items()}
    groups = {name: part[column] for name, part in parts.items()}
    return DatasetDict(without) if isinstance(train_dataset, Mapping) else without[""], groups


def fingerprint(train_dataset: Dataset | DatasetDict) -> str:
    """Returns a text that another training set would not have.

    Args:
        train_dataset: what the trainer trains on.

    Returns:
        Hashes of the contents; of media, which have no plain content to hash, the history stands for it.
    """
    hashes = []
    for part in parts_of(train_dataset).values():
        try:
            hashes.append(corpus_hash(part))
        except TypeError:
            hashes.append(str(part._fingerprint))
    return "-".join(hashes)


def planned_names(
    planner_columns: Sequence[str] | Mapping[str, Sequence[str]] | None, train_dataset: Dataset | DatasetDict
) -> dict[str, Sequence[str] | None]:
    """Returns the names of the two columns that each dataset is planned on, None for its first two.

    Args:
        planner_columns: the field of the arguments.
        train_dataset: what the trainer trains on.

    Returns:
        One entry a dataset, see `parts_of`. Whether it has such columns is not looked at.

    Raises:
        ValueError: a mapping that names a dataset which is not there.
    """
    names = list(parts_of(train_dataset))
    if not isinstance(planner_columns, Mapping):
        return dict.fromkeys(names, planner_columns)
    if unknown := [name for name in planner_columns if name not in names or name == ""]:
        there = f"the datasets {names}" if isinstance(train_dataset, Mapping) else "one dataset, which has no name"
        raise ValueError(f"planner_columns: got columns of {unknown[0]!r}, but the training set is {there}.")
    return {name: planner_columns.get(name) for name in names}


def source_options(args: PlanningArguments, folder: Path, view: View) -> SourceOptions:
    """Returns how embeddings are come by.

    Args:
        args: of the training.
        folder: of the run.
        view: what is planned on of the outputs of a pass.

    Returns:
        The options of the source. Several processes keep embeddings in files if they see the same ones, and
        in the memory of the one that plans if they do not, whatever the arguments say.
    """
    ranks = args.world_size
    in_files = args.embedding_storage == "disk" if ranks == 1 else on_one_node(ranks)
    return SourceOptions(
        harvest=args.embedding_source == "harvest",
        first_plan=args.first_plan,
        max_age=args.embedding_max_age,
        budget=args.embedding_budget,
        dtype=args.embedding_dtype,
        folder=folder / EMBEDDINGS_FOLDER if in_files or args.embedding_storage == "disk" else None,
        batch_size=args.embedding_batch_size or args.per_device_eval_batch_size,
        show_progress=not args.disable_tqdm,
        view=view,
    )


def loss_scale(loss: Any, mean_square_norm: float = 1.0) -> float:
    """Returns what a loss multiplies cosines with, so that the logged gap is that of the loss in use.

    Args:
        loss: a loss module; wrapped ones (Matryoshka, SPLADE) are looked into.
        mean_square_norm: of the embeddings, where they are not of unit norm.

    Returns:
        Its `scale`, or 1 / `temperature`, or 20 if it has neither; of one that scores with dot products, times the
        mean squared norm.
    """
    for layer in _unwrapped(loss):
        if isinstance(scale := getattr(layer, "scale", None), (int, float)):
            scores_dots = getattr(layer, "similarity_fct", None) is dot_score
            return float(scale) * (mean_square_norm if scores_dots else 1.0)
        if isinstance(temperature := getattr(layer, "temperature", None), (int, float)) and temperature > 0:
            return 1.0 / float(temperature)
    return SCALE


def gathers_negatives(loss: Any) -> bool:
    """Returns whether a loss contrasts the rows of all processes with one another.

    Args:
        loss: a loss module; wrapped ones (Matryoshka) are looked into.
    """
    return any(getattr(layer, "gather_across_devices", False) for layer in _unwrapped(loss))


def _unwrapped(loss: Any) -> Iterator[Any]:
    """Gives a loss, then the one that it wraps (Matryoshka), and so on."""
    while loss is not None:
        yield loss
        loss = getattr(loss, "loss", None)


def refuse_model(model: Any, trainer_class: type) -> None:
    """Returns nothing, if a trainer is that of the model.

    Args:
        model: what it was given.
        trainer_class: of the trainer.

    Raises:
        ValueError: a model of the host's that has another trainer, or none.
    """
    classes = [one.__name__ for one in type(model).__mro__]
    kind = next((name for name in classes if name in _TRAINERS), None)
    if kind is None or _TRAINERS[kind] in [one.__name__ for one in trainer_class.__mro__]:
        return
    advice = f"Use {_TRAINERS[kind]}" if _TRAINERS[kind] else "It embeds no text, so there is nothing to plan on"
    raise ValueError(f"model: got a {kind} in {trainer_class.__name__}, expected the model of this trainer. {advice}.")


def refuse_unsupported(trainer: Any) -> None:
    """Returns nothing, if the rows that a step trains on are those that were planned for it.

    Args:
        trainer: a `GCBSTrainer` that is about to train.

    Raises:
        ValueError: sharded weights, or batches that are cut or dealt out anew after they were planned.
    """
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


def plan_record(
    anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, batch_size: int, scale: float, *, repeats: bool
) -> dict[str, float]:
    """Returns what is logged of a plan's quality, measured on a sample of its batches.

    Args:
        anchors: (n, d) float32, unit rows.
        positives: (n, d) float32, unit rows.
        order: (m,) rows, blocks being batches.
        batch_size: rows a batch.
        scale: see `loss_scale`.
        repeats: rows may recur in other batches.

    Returns:
        The fields of `gcbs_st.quality.PlanQuality` that tell something over the steps of a run.
    """
    sample_rows = max(2 * batch_size, _MEASURED_PRODUCTS // len(anchors))
    quality = plan_quality(
        anchors, positives, order, batch_size, scale=scale, sample_rows=sample_rows, repeats=repeats
    )
    return {
        "gap": quality.gap,
        "gap_bound": quality.gap_bound,
        "closed": quality.closed or 0.0,
        "tail_coverage": quality.tail_coverage,
        "false_negatives": quality.false_negatives,
    }


def clusters_at(share: float, batch_size: int, clusters_at_end: int) -> int:
    """Returns how many clusters make a batch at some point of a curriculum (NGAME, arXiv 2207.04452).

    Args:
        share: of the run that is behind, in [0, 1].
        batch_size: rows a batch; so many clusters of one row, which is random batches, at the start.
        clusters_at_end: in the last stage.

    Returns:
        `clusters_at_end` times a power of two; each stage lasts as long as every other.

    Example:
        >>> [clusters_at(share / 4, batch_size=8, clusters_at_end=1) for share in range(5)]
        [8, 4, 2, 1, 1]
    """
    halvings = max(0, int(np.log2(batch_size / clusters_at_end)))
    return clusters_at_end * 2 ** (halvings - min(halvings, int(share * (halvings + 1))))
