"""What a source of embeddings is made of and what it gives: plain data, and the key that its stored rows go under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from gcbs_st.embeddings import Collate, View, sentence_embedding
from gcbs_st.rows.columns import TextColumn

EMBEDDINGS_FOLDER = "gcbs_embeddings"


@dataclass(frozen=True)
class Fetched:
    """Rows and their embeddings; on all but the main process both are empty.

    Attributes:
        rows: (m,) int64, ascending.
        arrays: one (m, d) array of unit rows a column, anchors first.
        ages: (m,) optimizer steps since each row was embedded; empty for word vectors, which are no embedding
            of this model.
    """

    rows: np.ndarray
    arrays: list[np.ndarray]
    ages: np.ndarray


@dataclass(frozen=True)
class SourceOptions:
    """How embeddings are come by; the fields of `GCBSTrainingArguments` of the same names.

    Attributes:
        harvest: take them from the training passes.
        first_plan: what there is before any: "encode", "random" or "word_vectors".
        max_age: rows embedded longer ago than so many optimizer steps are encoded; None for no row.
        budget: so many rows at most are encoded for a plan; None for no limit.
        dtype: of the stored embeddings.
        folder: for them, which all processes see; None to keep them in memory.
        batch_size: texts a forward pass when encoding.
        show_progress: of encoding.
        view: what is planned on of the outputs of a pass, encoded or harvested.
        collate: makes the features of rows, where the user's collator may change texts; None to encode them as they
            are.
    """

    harvest: bool
    first_plan: str
    max_age: int | None
    budget: int | None
    dtype: str
    folder: Path | None
    batch_size: int
    show_progress: bool
    view: View = sentence_embedding
    collate: Collate | None = None


NOTHING = Fetched(np.zeros(0, np.int64), [], np.zeros(0))


def make_key(fingerprint: str, name: str, columns: Sequence[TextColumn], model: torch.nn.Module, view: View) -> str:
    """Returns a text that other rows, columns, prompts, another architecture or view of it would not have.

    Args:
        fingerprint: of the training set.
        name: of the dataset.
        columns: that are embedded.
        model: whose weights may be others.
        view: what is kept of a pass.
    """
    shapes = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    texts = [asdict(column) for column in columns]
    for text in texts:
        if text["max_length"] is None:  # as in the checkpoints of before there was one
            del text["max_length"]
    described = [fingerprint, name, texts, shapes]
    if view is not sentence_embedding:
        described.append(getattr(view, "__qualname__", repr(view)))  # a function's repr is another one in each process
    return hashlib.sha1(json.dumps(described).encode(), usedforsecurity=False).hexdigest()
