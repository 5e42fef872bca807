"""Which training arguments go together: the fields in, an error out that names the field, what it holds and what it may hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gcbs_st.batches.weighted import EXPECTED as EXPECTED_WEIGHTS
from gcbs_st.batches.weighted import are_weights
from gcbs_st.planners.base import abilities_of
from gcbs_st.training.hardness import EXPECTED as EXPECTED_HARDNESS
from gcbs_st.training.hardness import HardnessSchedule
from gcbs_st.training.rule import AUTO

_CHOICES = {
    "embedding_source": ("encode", "harvest"),
    "first_plan": ("random", "encode"),
    "embedding_dtype": ("float32", "float16"),
    "embedding_storage": ("memory", "disk"),
    "cluster_schedule": ("constant", "curriculum"),
}
_EXPECTED_COLUMNS = (
    'one column name or two different ones, as ["anchor", "negative"], or a mapping of dataset name to such a list'
)
_EXPECTED_VIEW = (
    "model, initial, auto, a reference model (name, folder or object), or a list of two views, such as "
    '["initial", "NAME"]'
)
# Fields that a command line gives as JSON, and what is expected of it.
FIELDS_IN_JSON = {
    "planner_options": "a JSON object",
    "planner_columns": _EXPECTED_COLUMNS,
    "planner_view": _EXPECTED_VIEW,
    "planner_hardness": EXPECTED_HARDNESS,
    "dataset_weights": EXPECTED_WEIGHTS,
}
_NUMBERS = (
    "replan_steps",
    "planning_window",
    "planner_warmup_steps",
    "planner_cooldown_steps",
    "embedding_batch_size",
    "embedding_max_age",
    "embedding_budget",
    "planner_margin",
    "sub_batches",
)


def check_planning(args: Any) -> None:
    """Raises a ValueError if a field of `PlanningArguments` is wrong, or does not go with another."""
    _check_numbers(args)
    for name, nothing, whole in (
        ("replan_steps", "each epoch's start", "an epoch"),
        ("planner_cooldown_steps", "no step", "the run"),
    ):
        value = getattr(args, name)
        if not (0 <= value < 1 or (value >= 1 and float(value).is_integer())):
            raise ValueError(
                f"{name}: got {value}, expected 0 ({nothing}), a whole number of steps, or a share of {whole} "
                "between 0 and 1."
            )
    if args.planner_warmup_steps < 0:
        raise ValueError(f"planner_warmup_steps: got {args.planner_warmup_steps}, expected 0 or more steps.")
    if args.planning_window is not None and args.planning_window < 1:
        raise ValueError(f"planning_window: got {args.planning_window}, expected at least 1 row, or None.")
    if args.planning_window is not None and args.replan_steps:
        raise ValueError(
            f"planning_window: got {args.planning_window} together with replan_steps={args.replan_steps}, but each "
            "window is planned when the one before is drawn. Leave one of the two out."
        )
    if args.embedding_batch_size is not None and args.embedding_batch_size < 1:
        raise ValueError(f"embedding_batch_size: got {args.embedding_batch_size}, expected at least 1, or None.")
    _check_embedding(args)
    if not isinstance(args.planner_options, (dict, type(None))):
        raise ValueError(f"planner_options: got {args.planner_options!r}, expected a mapping of option to value.")
    _check_datasets(args)
    _check_columns(args)
    _check_views(args)
    _check_hardness(args)
    _check_planner(args)


def read_json(field_name: str, text: str, expected: str) -> Any:
    """Returns what a command line gives as JSON, of columns also the bare name of one; raises a ValueError that names the field."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if field_name == "planner_columns" and text.isidentifier():
            return [text]
        if field_name == "planner_view" and text and not text.startswith(("[", "{")):
            return text
        raise ValueError(f"{field_name}: got {text!r}, expected {expected}: {error}") from None


def _is_view(view: Any) -> bool:
    return (isinstance(view, str) and bool(view)) or callable(getattr(view, "encode", None))


def name_view(view: Any) -> Any:
    """Returns a view as text; of a model that is given as an object its class."""
    return view if view is None or isinstance(view, str) else f"{type(view).__module__}.{type(view).__qualname__}"


def _check_numbers(args: Any) -> None:
    for name in _NUMBERS:
        value = getattr(args, name)
        if value is not None and (isinstance(value, (bool, str)) or not isinstance(value, (int, float))):
            quoted = " It stands in quotes, which make it a text: leave them out." if isinstance(value, str) else ""
            raise ValueError(f"{name}: got {value!r}, expected a number.{quoted}")


def _check_datasets(args: Any) -> None:
    """Checks how several datasets are mixed; which there are is for the trainer to check."""
    given: Any = args.dataset_weights
    if given is not None and not are_weights(given):
        raise ValueError(f"dataset_weights: got {given!r}, expected {EXPECTED_WEIGHTS}.")
    mixer = getattr(args.multi_dataset_batch_sampler, "name", repr(args.multi_dataset_batch_sampler))
    if given is not None and mixer != "PROPORTIONAL":
        raise ValueError(
            f"dataset_weights: got {given!r} together with multi_dataset_batch_sampler={mixer.lower()}, which says "
            "otherwise how many batches of each dataset are drawn. Leave one of the two out."
        )
    rows, parts = args.train_batch_size, args.sub_batches
    if not isinstance(parts, int) or parts < 1 or rows % parts or (parts > 1 and rows == parts):
        raise ValueError(
            f"sub_batches: got {parts}, expected a divisor of the {rows} rows of per_device_train_batch_size that leaves "
            "each sub-batch two rows or more: the rows of a sub-batch are each other's negatives."
        )


def _check_columns(args: Any) -> None:
    if args.positives_column is not None and args.positives_column == args.group_column:
        raise ValueError(
            f"positives_column: got {args.positives_column!r}, which is the group_column as well, expected a column "
            "of lists of texts."
        )
    given: Any = args.planner_columns
    for names in given.values() if isinstance(given, Mapping) else [given]:
        texts = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        if given is not None and not (texts and 1 <= len(names) <= 2 and len(set(names)) == len(names)):
            raise ValueError(f"planner_columns: got {given!r}, expected {_EXPECTED_COLUMNS}.")


def _check_views(args: Any) -> None:
    views, reference = args.views, args.planner_reference
    alike = len(views) == 2 and (views[0] is views[1] or name_view(views[0]) == views[1])
    automatic = len(views) == 2 and AUTO in [name_view(view) for view in views]
    if not 1 <= len(views) <= 2 or alike or automatic or not all(_is_view(view) for view in views):
        raise ValueError(f"planner_view: got {args.planner_view!r}, expected {_EXPECTED_VIEW}.")
    if args.embedding_source == "harvest" and not {"model", AUTO} & {name_view(view) for view in views}:
        raise ValueError(
            "embedding_source: harvest takes embeddings of the model as it trains, but planner_view is "
            f"{args.planner_view!r}, which plans on others. Leave one of the two out."
        )
    if args.planner_margin is not None and not args.planner_margin >= 0:
        raise ValueError(f"planner_margin: got {args.planner_margin}, expected at least 0, or None.")
    if reference is not None and (name_view(reference) in ("model", AUTO) or not _is_view(reference)):
        raise ValueError(
            f"planner_reference: got {reference!r}, expected a model (name, folder or object), initial, or None for "
            "the embeddings that are planned on."
        )


def _check_hardness(args: Any) -> None:
    given: Any = args.planner_hardness
    HardnessSchedule.from_field(given)
    clusters = abilities_of(args.make_planner()).clusters_per_batch or 1
    if given is not None and (args.cluster_schedule != "constant" or clusters > 1):
        raise ValueError(
            f"planner_hardness: got {given!r} together with clusters_per_batch or cluster_schedule, which say the "
            "same in other words. Leave one of the two out."
        )


def _check_planner(args: Any) -> None:
    planner = args.make_planner()
    if len(args.views) == 2 and not abilities_of(planner).plans_on_products:
        raise ValueError(
            f"planner_view: got {args.planner_view!r}, but {args.planner!r} plans on sums of anchors and positives, "
            'which know no "not alike". Use best, partition, hobit or gcbs, or a single view.'
        )
    if args.cluster_schedule == "curriculum" and abilities_of(planner).clusters_per_batch is None:
        raise ValueError(
            f"cluster_schedule: curriculum needs a planner that composes batches of clusters, but {args.planner!r} "
            "has no clusters_per_batch. Use best, partition or bisect."
        )


def _check_embedding(args: Any) -> None:
    for field_name, choices in _CHOICES.items():
        if getattr(args, field_name) not in choices:
            raise ValueError(f"{field_name}: got {getattr(args, field_name)!r}, expected {' or '.join(choices)}.")
    for name, least in (("embedding_max_age", 0), ("embedding_budget", 1)):
        value: int | None = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}, or None.")
    if args.embedding_budget is not None and args.embedding_max_age is None:
        raise ValueError(
            f"embedding_budget: got {args.embedding_budget} without embedding_max_age, which says what rows are "
            "old enough to be encoded."
        )
