"""The trainer of late-interaction models (ColBERT and its like): the host's, with batches composed from token vectors.

The score of two texts is MaxSim, the sum over the query's tokens of their best match, which is no inner product of two
rows. Plans are made on an approximation: the unit mean of the token vectors that are scored, query expansion and skip
list as in training. Texts that share many near tokens have near means; a single word that decides a match is lost in
the mean. What is logged of a plan is of the cosines of these means. Needs a host with `MultiVectorEncoder`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Union

import sentence_transformers

from gcbs_st.embeddings.views import View, mean_of_tokens
from gcbs_st.rows.columns import TextColumn
from gcbs_st.training.argument_checks import FIELDS_IN_JSON
from gcbs_st.training.arguments import PlanningArguments
from gcbs_st.training.planned_training import PlannedTraining

try:
    from sentence_transformers import MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments
except ImportError:
    raise ImportError(
        f"GCBSMultiVectorEncoderTrainer: got sentence-transformers {sentence_transformers.__version__}, expected one with "
        "MultiVectorEncoder. Run: pip install -U sentence-transformers"
    ) from None

__all__ = ["GCBSMultiVectorEncoderTrainer", "GCBSMultiVectorEncoderTrainingArguments"]


@dataclass
class GCBSMultiVectorEncoderTrainingArguments(PlanningArguments, MultiVectorEncoderTrainingArguments):
    """`MultiVectorEncoderTrainingArguments` and how batches are composed: the fields of `PlanningArguments`.

    Example:
        >>> from gcbs_st import GCBSMultiVectorEncoderTrainingArguments
        >>> GCBSMultiVectorEncoderTrainingArguments("out", max_length={"query": 32}, report_to="none").max_length
        {'query': 32}
    """

    plain_class = MultiVectorEncoderTrainingArguments
    fields_in_json = {**FIELDS_IN_JSON, "max_length": "a number of tokens, or a mapping of task to one"}

    # The host's field, which no HfArgumentParser takes as long as it may not be a string.
    max_length: Union[int, str, None, dict[str, int]] = field(  # type: ignore[assignment]  # noqa: UP007 - it reads Union
        default=None, metadata={"help": "Tokens per text in training, or a mapping of task to them, as JSON."}
    )


class GCBSMultiVectorEncoderTrainer(PlannedTraining, MultiVectorEncoderTrainer):
    """`MultiVectorEncoderTrainer` that decides which rows train together.

    Takes what the host's trainer takes, see `PlannedTraining`, and plans on the mean of each text's token vectors.

    Example:
        >>> from gcbs_st import GCBSMultiVectorEncoderTrainer, GCBSMultiVectorEncoderTrainingArguments
        >>> args = GCBSMultiVectorEncoderTrainingArguments("out", planner="bisect", report_to="none")
        >>> GCBSMultiVectorEncoderTrainer(model, args, pairs).train()  # doctest: +SKIP
        TrainOutput(global_step=...)
    """

    training_args_class = GCBSMultiVectorEncoderTrainingArguments
    args: GCBSMultiVectorEncoderTrainingArguments

    def planning_view(self) -> View:
        """Returns the mean of the token vectors that are scored."""
        return mean_of_tokens

    def as_trained(self, column: TextColumn, position: int) -> TextColumn:
        """Returns a column with the task and length of training: the first column is the query, unless a route says so."""
        task = column.task or ("query" if position == 0 else "document")
        length = self.args.max_length
        assert not isinstance(length, str)  # read from JSON by then
        return replace(column, task=task, max_length=length.get(task) if isinstance(length, dict) else length)
