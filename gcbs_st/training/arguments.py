"""The training arguments: the host's, and the few fields that say how batches are composed."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, Union

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.base.training_args import BaseTrainingArguments

from gcbs_st.batches.weighted import EXPECTED as EXPECTED_WEIGHTS
from gcbs_st.batches.weighted import are_weights
from gcbs_st.planners import Planner, make_planner
from gcbs_st.planners.base import abilities_of
from gcbs_st.training.hardness import EXPECTED as EXPECTED_HARDNESS
from gcbs_st.training.hardness import HardnessSchedule
from gcbs_st.training.rule import AUTO, PLANNER

logger = logging.getLogger(__name__)

# Beside the arguments of any of the host's trainers; which one is for the concrete classes to say.
if TYPE_CHECKING:
    _Host = BaseTrainingArguments
else:
    _Host = object


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
_NO_DUPLICATES = ("NO_DUPLICATES", "NO_DUPLICATES_HASHED")
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


def _read_json(field_name: str, text: str, expected: str) -> Any:
    """What a command line gives as JSON; of columns also the bare name of one."""
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


def _name_view(view: Any) -> Any:
    """A view as text; of a model that is given as an object its class."""
    return view if view is None or isinstance(view, str) else f"{type(view).__module__}.{type(view).__qualname__}"


@dataclass
class PlanningArguments(_Host):
    """How batches are composed: the fields that are ours, beside the arguments of one of the host's trainers.

    `batch_sampler="no_duplicates"` has the host's meaning: no text stands twice in a batch, whatever the
    planner. Batches are always full, `dataloader_drop_last` or not.

    Args:
        planner: a name of `gcbs_st.planners.available()`, "auto" for the planner and view that our experiments support for
            model and rows (see `gcbs_st.training.rule`; what it stands for is logged), which are random batches where a
            row is one text and dropout makes a pair of it; or an object with a `plan` method.
        planner_options: keyword arguments of the planner's constructor, as a dict or JSON.
        planner_columns: the two text columns that are planned on, anchors first, as a list or JSON; of several
            datasets for all of them, or a mapping of dataset name to such a list, in which a dataset may be left
            out. A single name puts rows together whose texts of that column are alike, embeds no other, and what
            is logged of plans is of these texts. None for the first two text columns. The loss sees all columns in
            any case.
        replan_steps: when plans are made besides each epoch's start. 0: then only; N, 1 or more: also every N optimizer
            steps, over the rows not yet drawn; between 0 and 1: that share of an epoch's steps.
        planning_window: rows that are embedded and planned at a time. None: all that an epoch has left, or 16,384 of an
            `IterableDataset`, of which no more is known. With fewer rows embeddings are fresher, at the price of one pass an
            epoch, and batches less hard: each is composed of the rows of one window. Rounded down to whole steps.
        planner_warmup_steps: optimizer steps with random batches before the first plan.
        planner_cooldown_steps: optimizer steps with random batches at the end of the run; between 0 and 1: that share
            of the run. What planned batches hold in common tells none of their rows apart and loses weight; random
            batches give some of it back.
        embedding_batch_size: texts per forward pass when the rows are embedded; None for 128, or fewer where the
            model takes texts of more than 512 tokens.
        embedding_source: "encode": the rows to be planned are embedded before each plan, at about a third of an
            epoch's time. "harvest": embeddings are taken from the training passes, at almost no cost and up to an
            epoch old; a row never seen yet keeps its place.
        first_plan: what plans while no row was harvested yet. "random": nothing, batches stay random; "encode":
            one encoding pass, as of rows never seen later.
        embedding_max_age: encode harvested rows that are older than this number of optimizer steps, and rows that were
            never seen, at every plan but the first. None for no row.
        embedding_budget: encode at most this number of these rows per plan, the oldest first. None for all of them.
        embedding_dtype: of harvested rows, "float32" or "float16".
        embedding_storage: harvested rows are kept in "memory", or on "disk" in `output_dir`. Several processes
            on one node share files in any case.
        group_column: a column whose equal values mark rows that must not share a batch, since they are
            positives of each other (two captions of one photo); with a loss that masks by identity they may, and are no
            negatives. It is not trained on. None for no such column.
        positives_column: a column of lists of texts that are right answers to a row's anchor, beside its positive. Rows
            that have one of them as anchor or positive are kept out of the row's batch, or, by a loss that masks by
            identity, of its negatives. It is not trained on. None for no such column.
        cluster_schedule: "constant", or "curriculum": the planner's clusters per batch start at the batch size,
            which is random batches, and halve in equal shares of the run until they reach the planner's own
            `clusters_per_batch` (NGAME, arXiv 2207.04452, doubles its cluster size on such a schedule).
        planner_view: by whose embeddings rows are alike. "model": those of the model as it is when a plan is due;
            "initial": those of the model as training found it; or a reference model, its name, folder or the object.
            Those of the last two are made once, kept on disk for later runs, and every further plan costs almost nothing.
            Two of these, as a list or JSON, put rows together that are alike in the first and not in the second; for
            planners that plan on products of anchors and positives, all of ours but `bisect`. "auto": the view that our
            study supports for model and rows, see `gcbs_st.training.rule`; logged as what it stands for.
            None is "auto" with `planner="auto"`, and else "model".
        planner_hardness: how hard batches are, from 0, random ones, to 1, the planner's hardest. A batch of B rows is
            made of clusters of B ** hardness rows of a plan. A list of pairs, or JSON, [share of the run, hardness],
            is a schedule: hardness is interpolated between them, and a plan is made at each of them, besides those that
            are due in any case. Two pairs of one share are a step. None leaves the planner's own `clusters_per_batch` and
            `cluster_schedule` in force, which say the same in other words, and is 1 without them; with `planner="auto"` it
            is 0.5 where at least 2 % of the negatives of the hardest batches look false, decided at a run's first plan and
            logged (see `gcbs_st.training.rule`).
        planner_margin: rows that score above this times an anchor's own positive are no negatives of it, and planners
            that take contradictions (`best`, `partition`, `hobit`) plan as if they were not there. None for the
            margin of the loss, if it has a guard; infinity for none.
        planner_reference: a model, as in `planner_view`, whose scores `planner_margin` goes by. None for those that are
            planned on.
        shuffle_planned_batches: draw the batches of a plan in random order, not side by side.
        dataset_weights: of several datasets, the share of the steps that each gets. A number a, 0 or more: proportional to
            n ** a, where n are the steps of one pass over a dataset (1 as many as it has, 0 the same for all). A mapping of
            each dataset's name to a weight of 0 or more: proportional to that. An epoch has as many steps as all datasets
            have together, and each has its share of them to within a step, in random order; a dataset with more than one
            pass starts over, shuffled and planned anew. None leaves the mixing to `multi_dataset_batch_sampler`.
        sub_batches: of several datasets, how many sub-batches a batch is made of, each of one dataset and
            per_device_train_batch_size / sub_batches rows, composed as a batch of its own and scored by its dataset's
            loss; the loss of the batch is their mean. 1: a batch is of one dataset.

    Raises:
        ValueError: a value out of its range, an unknown planner or option, or a batch sampler that planning replaces.
    """

    # The host's class that these fields stand beside.
    plain_class: ClassVar[type[BaseTrainingArguments]]
    fields_in_json: ClassVar[Mapping[str, str]] = FIELDS_IN_JSON
    # A trainer that plans has taken these arguments.
    claimed: ClassVar[bool] = False
    # What the planner was made of, and the planner.
    _made: ClassVar[tuple[Any, Planner] | None] = None

    # `planner` is annotated as a string for HfArgumentParser; a Planner object is taken as well.
    planner: str = field(default="auto", metadata={"help": "Name of the planner that composes the batches, or auto."})
    planner_options: Union[dict[str, Any], str, None] = field(  # noqa: UP007 - HfArgumentParser reads Union
        default=None, metadata={"help": "Keyword arguments of the planner's constructor, as JSON."}
    )
    planner_columns: Union[str, None, list[str], dict[str, list[str]]] = field(  # noqa: UP007 - as above
        default=None,
        metadata={
            "help": "The one or two text columns to plan on, as JSON: a list, or a mapping of dataset to a list."
        },
    )
    replan_steps: float = field(
        default=0.0,
        metadata={
            "help": "0: plan at each epoch's start only; >= 1: also every N steps; in (0, 1): share of an epoch."
        },
    )
    planning_window: Union[int, None] = field(  # noqa: UP007 - HfArgumentParser reads Union
        default=None, metadata={"help": "Rows embedded and planned at a time; default: all, or 16,384 of a stream."}
    )
    planner_warmup_steps: int = field(default=0, metadata={"help": "Optimizer steps with random batches first."})
    planner_cooldown_steps: float = field(
        default=0.0, metadata={"help": "Optimizer steps with random batches last; in (0, 1): share of the run."}
    )
    embedding_batch_size: Union[int, None] = field(  # noqa: UP007 - HfArgumentParser reads Union
        default=None,
        metadata={"help": "Texts per forward pass when rows are embedded; default: 128, fewer of long texts."},
    )
    embedding_source: str = field(
        default="encode", metadata={"help": "encode the rows before each plan, or harvest them from training passes."}
    )
    first_plan: str = field(
        default="random", metadata={"help": "What plans before any row was harvested: encode or random."}
    )
    embedding_max_age: Union[int, None] = field(  # noqa: UP007 - HfArgumentParser reads Union
        default=None, metadata={"help": "Encode harvested rows that are older than N steps; default: none."}
    )
    embedding_budget: Union[int, None] = field(  # noqa: UP007 - HfArgumentParser reads Union
        default=None, metadata={"help": "Encode at most N old rows per plan, the oldest first; default: all."}
    )
    embedding_dtype: str = field(default="float32", metadata={"help": "Of harvested rows: float32 or float16."})
    embedding_storage: str = field(
        default="memory", metadata={"help": "Where harvested rows are kept: memory, or disk (in output_dir)."}
    )
    group_column: Union[str, None] = field(  # noqa: UP007 - HfArgumentParser reads Union
        default=None, metadata={"help": "Column whose equal values mark rows that must not share a batch."}
    )
    positives_column: Union[str, None] = field(  # noqa: UP007 - HfArgumentParser reads Union
        default=None, metadata={"help": "Column of lists of texts that are right answers to the row's anchor."}
    )
    cluster_schedule: str = field(
        default="constant",
        metadata={"help": "constant, or curriculum: from random batches to the planner's hardness."},
    )
    # Models are taken as well, as objects.
    planner_view: Union[str, None, list[str]] = field(  # noqa: UP007 - HfArgumentParser reads Union
        default=None,
        metadata={"help": "By whose embeddings rows are alike: model, initial, a reference model, or two as JSON."},
    )
    planner_hardness: Union[str, None, float, list[list[float]]] = field(  # noqa: UP007 - as above
        default=None,
        metadata={"help": "0 (random batches) to 1 (hardest), or JSON pairs [share of the run, hardness]."},
    )
    planner_margin: Union[float, None] = field(  # noqa: UP007 - as above
        default=None, metadata={"help": "Share of the own positive's score above which a row is no negative."}
    )
    planner_reference: Union[str, None] = field(  # noqa: UP007 - as above
        default=None, metadata={"help": "Model whose scores planner_margin goes by; default: those planned on."}
    )
    shuffle_planned_batches: bool = field(default=True, metadata={"help": "Draw a plan's batches in random order."})
    dataset_weights: Union[str, None, float, dict[str, float]] = field(  # noqa: UP007 - as above
        default=None,
        metadata={"help": "Shares of several datasets: the power of their sizes, or JSON of name to weight."},
    )
    sub_batches: int = field(
        default=1, metadata={"help": "Of several datasets: sub-batches of one each that a batch is made of."}
    )

    def __post_init__(self) -> None:
        """Checks the fields, after the host has checked its own."""
        # Before the host, which would read the JSON too, but whose message does not name the field.
        for name, expected in self.fields_in_json.items():
            if isinstance(text := getattr(self, name), str):
                setattr(self, name, _read_json(name, text, expected))
        super().__post_init__()
        self.check_planning()

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Returns the host's warm-up steps, and warns if no trainer of ours has taken these arguments by now."""
        if not self.claimed:
            logger.warning(
                "%s in a trainer that plans no batches: they are random, and planner=%r has no effect. Train with %s.",
                type(self).__name__,
                self.planner,
                type(self).__name__.replace("TrainingArguments", "Trainer"),
            )
        steps: int = super().get_warmup_steps(num_training_steps)
        return steps

    def check_planning(self) -> None:
        """Raises a ValueError that says the field, what it holds and what it may hold, if one is wrong."""
        self._check_numbers()
        for name, nothing, whole in (
            ("replan_steps", "each epoch's start", "an epoch"),
            ("planner_cooldown_steps", "no step", "the run"),
        ):
            value = getattr(self, name)
            if not (0 <= value < 1 or (value >= 1 and float(value).is_integer())):
                raise ValueError(
                    f"{name}: got {value}, expected 0 ({nothing}), a whole number of steps, or a share of {whole} "
                    "between 0 and 1."
                )
        if self.planner_warmup_steps < 0:
            raise ValueError(f"planner_warmup_steps: got {self.planner_warmup_steps}, expected 0 or more steps.")
        if self.planning_window is not None and self.planning_window < 1:
            raise ValueError(f"planning_window: got {self.planning_window}, expected at least 1 row, or None.")
        if self.planning_window is not None and self.replan_steps:
            raise ValueError(
                f"planning_window: got {self.planning_window} together with replan_steps={self.replan_steps}, but each "
                "window is planned when the one before is drawn. Leave one of the two out."
            )
        if self.embedding_batch_size is not None and self.embedding_batch_size < 1:
            raise ValueError(f"embedding_batch_size: got {self.embedding_batch_size}, expected at least 1, or None.")
        self._check_embedding()
        if not isinstance(self.planner_options, (dict, type(None))):
            raise ValueError(f"planner_options: got {self.planner_options!r}, expected a mapping of option to value.")
        self._check_datasets()
        self._check_columns()
        self._check_views()
        self._check_hardness()
        self._check_planner()

    def _check_numbers(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, (bool, str)) or not isinstance(value, (int, float))):
                quoted = (
                    " It stands in quotes, which make it a text: leave them out." if isinstance(value, str) else ""
                )
                raise ValueError(f"{name}: got {value!r}, expected a number.{quoted}")

    def _check_datasets(self) -> None:
        """Checks how several datasets are mixed; which there are is for the trainer to check."""
        given: Any = self.dataset_weights
        if given is not None and not are_weights(given):
            raise ValueError(f"dataset_weights: got {given!r}, expected {EXPECTED_WEIGHTS}.")
        mixer = getattr(self.multi_dataset_batch_sampler, "name", repr(self.multi_dataset_batch_sampler))
        if given is not None and mixer != "PROPORTIONAL":
            raise ValueError(
                f"dataset_weights: got {given!r} together with multi_dataset_batch_sampler={mixer.lower()}, which says "
                "otherwise how many batches of each dataset are drawn. Leave one of the two out."
            )
        rows, parts = self.train_batch_size, self.sub_batches
        if not isinstance(parts, int) or parts < 1 or rows % parts or (parts > 1 and rows == parts):
            raise ValueError(
                f"sub_batches: got {parts}, expected a divisor of the {rows} rows of per_device_train_batch_size that leaves "
                "each sub-batch two rows or more: the rows of a sub-batch are each other's negatives."
            )

    def _check_columns(self) -> None:
        if self.positives_column is not None and self.positives_column == self.group_column:
            raise ValueError(
                f"positives_column: got {self.positives_column!r}, which is the group_column as well, expected a column "
                "of lists of texts."
            )
        given: Any = self.planner_columns
        for names in given.values() if isinstance(given, Mapping) else [given]:
            texts = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
            if given is not None and not (texts and 1 <= len(names) <= 2 and len(set(names)) == len(names)):
                raise ValueError(f"planner_columns: got {given!r}, expected {_EXPECTED_COLUMNS}.")

    @property
    def views(self) -> list[Any]:
        """Whose embeddings are planned on, one or two: "model", "initial", or a reference, a name or a model."""
        given: Any = self.planner_view
        default = AUTO if self.planner == AUTO else "model"
        return list(given) if isinstance(given, (list, tuple)) else [default if given is None else given]

    def _check_views(self) -> None:
        views, reference = self.views, self.planner_reference
        alike = len(views) == 2 and (views[0] is views[1] or _name_view(views[0]) == views[1])
        automatic = len(views) == 2 and AUTO in [_name_view(view) for view in views]
        if not 1 <= len(views) <= 2 or alike or automatic or not all(_is_view(view) for view in views):
            raise ValueError(f"planner_view: got {self.planner_view!r}, expected {_EXPECTED_VIEW}.")
        if self.embedding_source == "harvest" and not {"model", AUTO} & {_name_view(view) for view in views}:
            raise ValueError(
                "embedding_source: harvest takes embeddings of the model as it trains, but planner_view is "
                f"{self.planner_view!r}, which plans on others. Leave one of the two out."
            )
        if self.planner_margin is not None and not self.planner_margin >= 0:
            raise ValueError(f"planner_margin: got {self.planner_margin}, expected at least 0, or None.")
        if reference is not None and (_name_view(reference) in ("model", AUTO) or not _is_view(reference)):
            raise ValueError(
                f"planner_reference: got {reference!r}, expected a model (name, folder or object), initial, or None for "
                "the embeddings that are planned on."
            )

    def _check_hardness(self) -> None:
        given: Any = self.planner_hardness
        HardnessSchedule.from_field(given)
        clusters = abilities_of(self.make_planner()).clusters_per_batch or 1
        if given is not None and (self.cluster_schedule != "constant" or clusters > 1):
            raise ValueError(
                f"planner_hardness: got {given!r} together with clusters_per_batch or cluster_schedule, which say the "
                "same in other words. Leave one of the two out."
            )

    @property
    def chooses_hardness(self) -> bool:
        """Whether planner="auto" says how hard batches are, since nothing else does."""
        return self.planner == AUTO and self.planner_hardness is None and self.cluster_schedule == "constant"

    @property
    def hardness(self) -> HardnessSchedule:
        """How hard batches are over the run."""
        return HardnessSchedule.from_field(self.planner_hardness)

    def _check_planner(self) -> None:
        planner = self.make_planner()
        if len(self.views) == 2 and not abilities_of(planner).plans_on_products:
            raise ValueError(
                f"planner_view: got {self.planner_view!r}, but {self.planner!r} plans on sums of anchors and positives, "
                'which know no "not alike". Use best, partition, hobit or gcbs, or a single view.'
            )
        if self.cluster_schedule == "curriculum" and abilities_of(planner).clusters_per_batch is None:
            raise ValueError(
                f"cluster_schedule: curriculum needs a planner that composes batches of clusters, but {self.planner!r} "
                "has no clusters_per_batch. Use best, partition or bisect."
            )

    def _check_embedding(self) -> None:
        for field_name, choices in _CHOICES.items():
            if getattr(self, field_name) not in choices:
                raise ValueError(f"{field_name}: got {getattr(self, field_name)!r}, expected {' or '.join(choices)}.")
        for name, least in (("embedding_max_age", 0), ("embedding_budget", 1)):
            value: int | None = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: got {value}, expected at least {least}, or None.")
        if self.embedding_budget is not None and self.embedding_max_age is None:
            raise ValueError(
                f"embedding_budget: got {self.embedding_budget} without embedding_max_age, which says what rows are "
                "old enough to be encoded."
            )

    def make_planner(self) -> Planner:
        """Returns the planner that the fields describe; the same object until they change."""
        options = self.planner_options if isinstance(self.planner_options, dict) else None
        if self.planner == AUTO and options:
            raise ValueError(
                f"planner_options: got {options} with planner='auto', which chooses them itself. Name a planner, such as "
                f"planner={PLANNER!r}, or leave them out."
            )
        if self._made is None or self._made[0] != (self.planner, options):
            name = PLANNER if self.planner == AUTO else self.planner
            vars(self)["_made"] = (self.planner, copy.deepcopy(options)), make_planner(name, options)
        assert self._made is not None
        return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leaves models and the planner that was made out of `training_args.bin`: not every planner can be pickled."""
        return {**{name: value for name, value in vars(self).items() if name != "_made"}, **self._named_views()}

    def cooldown_start(self, max_steps: int) -> int | None:
        """Returns the optimizer step at which the random batches at the end begin; None if there are none.

        A run which is resumed to more steps then draws what a longer one would have drawn.
        """
        steps = self.planner_cooldown_steps
        if steps == 0:
            return None
        return max(0, max_steps - (int(steps) if steps >= 1 else math.ceil(steps * max_steps)))

    @property
    def device(self) -> torch.device:
        """The host's device. Older hosts number the processes' CPU, "cpu:0", and then cannot load a checkpoint to it."""
        device: torch.device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def no_duplicates(self) -> bool:
        """Whether a text may stand only once in a batch."""
        return isinstance(self.batch_sampler, BatchSamplers) and self.batch_sampler.name in _NO_DUPLICATES

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for the model card and trackers, a planner object as its text."""
        fields_as_dict: dict[str, Any] = super().to_dict()
        if not isinstance(self.planner, str):
            fields_as_dict["planner"] = repr(self.planner)
        return {**fields_as_dict, **self._named_views()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies the fields, but not models that are planned on."""
        copied = type(self).__new__(type(self))
        for name, value in vars(self).items():
            models = name in ("planner_view", "planner_reference")
            vars(copied)[name] = value if models else copy.deepcopy(value, memo)
        return copied

    def __copy__(self) -> Self:
        """Copies the fields as they are."""
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def _named_views(self) -> dict[str, Any]:
        """The fields that may hold models, these as text."""
        views = [_name_view(view) for view in self.views]
        named = views if isinstance(self.planner_view, (list, tuple)) else views[0]
        return {"planner_view": named, "planner_reference": _name_view(self.planner_reference)}

    @classmethod
    def from_plain(cls, args: BaseTrainingArguments) -> Self:
        """Returns plain arguments with the defaults of our fields; arguments of ours as they are."""
        if isinstance(args, cls):
            return args
        if type(args) is not cls.plain_class:
            raise TypeError(
                f"args: got {type(args).__name__}, expected {cls.__name__} or {cls.plain_class.__name__}. "
                f"Derive your own class from {cls.__name__}."
            )
        # Not built anew from its fields: the host's checks rewrite some of them and must not run twice.
        converted: Any = copy.copy(args)
        converted.__class__ = cls
        for ours in fields(cls):
            if not hasattr(converted, ours.name):
                setattr(converted, ours.name, ours.default if ours.default is not MISSING else None)
        converted.check_planning()
        assert isinstance(converted, cls)
        return converted


@dataclass
class GCBSTrainingArguments(PlanningArguments, SentenceTransformerTrainingArguments):
    """`SentenceTransformerTrainingArguments` and how batches are composed: the fields of `PlanningArguments`.

    Example:
        >>> from gcbs_st import GCBSTrainingArguments
        >>> args = GCBSTrainingArguments(output_dir="out", planner="gcbs", replan_steps=0.5, report_to="none")
        >>> args.replan_steps, args.make_planner()
        (0.5, ...GCBSPlanner...)
    """

    plain_class = SentenceTransformerTrainingArguments
