"""The training arguments: the host's, and the few fields that say how batches are composed."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, Union

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.base.training_args import BaseTrainingArguments

from gcbs_st.planners import Planner, make_planner
from gcbs_st.training.argument_checks import FIELDS_IN_JSON, check_planning, name_view, read_json
from gcbs_st.training.hardness import HardnessSchedule
from gcbs_st.training.rule import AUTO, PLANNER

logger = logging.getLogger(__name__)

# Beside the arguments of any of the host's trainers; which one is for the concrete classes to say.
if TYPE_CHECKING:
    _Host = BaseTrainingArguments
else:
    _Host = object


_NO_DUPLICATES = ("NO_DUPLICATES", "NO_DUPLICATES_HASHED")


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
            are due in any case; batches stay as hard as the plan that made them. Two pairs of one share are a step. None leaves the planner's own `clusters_per_batch` and
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
                setattr(self, name, read_json(name, text, expected))
        super().__post_init__()
        self.check_planning()

    def check_planning(self) -> None:
        """Raises a ValueError that says the field, what it holds and what it may hold, if one is wrong."""
        check_planning(self)

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

    @property
    def views(self) -> list[Any]:
        """Whose embeddings are planned on, one or two: "model", "initial", or a reference, a name or a model."""
        given: Any = self.planner_view
        default = AUTO if self.planner == AUTO else "model"
        return list(given) if isinstance(given, (list, tuple)) else [default if given is None else given]

    @property
    def chooses_hardness(self) -> bool:
        """Whether planner="auto" says how hard batches are, since nothing else does."""
        return self.planner == AUTO and self.planner_hardness is None and self.cluster_schedule == "constant"

    @property
    def hardness(self) -> HardnessSchedule:
        """How hard batches are over the run."""
        return HardnessSchedule.from_field(self.planner_hardness)

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
        views = [name_view(view) for view in self.views]
        named = views if isinstance(self.planner_view, (list, tuple)) else views[0]
        return {"planner_view": named, "planner_reference": name_view(self.planner_reference)}

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
