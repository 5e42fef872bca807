"""How the rows to be planned are embedded: one value, made of the training arguments, that all of the source reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gcbs_st.embeddings.encode import Collate
from gcbs_st.embeddings.fixed import FixedView
from gcbs_st.embeddings.views import View, sentence_embedding


@dataclass(frozen=True)
class SourceOptions:
    """How the rows to be planned are embedded; see the fields of `GCBSTrainingArguments` of the same names."""

    harvest: bool  # take embeddings from the training passes
    first_plan: str  # how the first plan is made, before any were harvested: "encode" or "random"
    max_age: int | None  # rows embedded longer ago than this many optimizer steps are encoded; None for no row
    budget: int | None  # at most this many rows are encoded for a plan; None for no limit
    dtype: str  # of the stored embeddings
    folder: Path | None  # for them, which all ranks see; None to keep them in memory
    batch_size: int  # texts per forward pass when encoding
    show_progress: bool  # of encoding
    # Whether the model as it is can embed rows outside of training; not where its weights are spread over processes.
    encodes: bool = True
    view: View = sentence_embedding  # what is planned on of the outputs of a pass, encoded or harvested
    # Makes the features of rows, where the user's collator may change texts; None to encode them as they are.
    collate: Collate | None = None
    # What is planned on: None stands for the model as it is. Of two views rows share a batch that are alike in the
    # first and not in the second.
    planned_views: Sequence[FixedView | None] = (None,)
    in_windows: bool = False  # the rows are some of a stream's, and others follow
    judge: FixedView | None = None  # whose scores say what is a false negative; None for those that are planned on
