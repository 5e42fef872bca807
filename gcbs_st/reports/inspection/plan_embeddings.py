"""A plan and a model, or the embeddings that a checkpoint harvested, in, a `Subject` with embedded rows out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from gcbs_st.batches.plan_history import StoredPlan
from gcbs_st.embeddings.encode import encode_rows
from gcbs_st.embeddings.store import NEVER, read_saved_store
from gcbs_st.reports.inspection.inspector import Embed, Subject
from gcbs_st.reports.inspection.pair_texts import PairTexts

# At most encoded per page: seconds with a static model, half a minute with a small transformer.
STATIC_ROWS, TRANSFORMER_ROWS = 65_536, 4096
_BATCH_TEXTS = 128


def encoder(model: SentenceTransformer, texts: PairTexts) -> Embed:
    """Returns a function from (m,) row ids to two (m, d) float32 arrays of unit rows, embedded as in training."""

    def embed(row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, dataset = np.arange(len(row_ids)), texts.as_dataset(row_ids)
        anchors, positives = encode_rows(model, dataset, rows, texts.columns, batch_size=_BATCH_TEXTS)
        return anchors, positives

    return embed


def encoded_subject(
    encoding: SentenceTransformer,
    plan: StoredPlan,
    texts: PairTexts,
    max_rows: int | None,
    *,
    notes: Sequence[str],
    **described: Any,
) -> Subject:
    """Returns a plan with the embeddings of its rows, or of a random sample of its batches if those are too many.

    At most `max_rows` rows are encoded, but at least a batch; None is 65,536 with a static model and 4,096 with others.
    `described` holds further fields of `Subject`.
    """
    limit = max_rows or (STATIC_ROWS if isinstance(encoding[0], StaticEmbedding) else TRANSFORMER_ROWS)
    batches = plan.order.reshape(-1, plan.batch_size)
    numbers = np.arange(len(batches))
    if plan.order.size > limit:
        drawn = np.random.default_rng(0).choice(len(batches), max(1, limit // plan.batch_size), replace=False)
        numbers = np.sort(drawn)
        note = f"Of {len(batches):,} batches {len(numbers):,} were drawn at random and encoded; --max-rows takes more."
        notes = [*notes, note]
    rows = np.unique(batches[numbers])
    anchors, positives = encoder(encoding, texts)(rows)
    if not (useful := anchors.any(axis=1) & positives.any(axis=1)).all():
        whole = np.isin(batches[numbers], rows[useful]).all(axis=1)
        note = f"{(~whole).sum():,} batches are left out: a text in them has no embedding, as a blank one has none."
        numbers, notes = numbers[whole], [*notes, note]
    return Subject(
        anchors=anchors,
        positives=positives,
        batches=np.searchsorted(rows, batches[numbers]),
        rows=rows,
        read_texts=texts.read,
        numbers=numbers,
        batches_in_plan=len(batches),
        notes=notes,
        **described,
    )


def stored_subject(
    folder: Path, step: int, plan: StoredPlan, texts: PairTexts, *, notes: Sequence[str], **described: Any
) -> Subject | None:
    """Returns a plan with the embeddings that training harvested until `step`, which stay on disk.

    Its batches are those whose rows were all seen; None if there is none, or no store in the folder. `described` holds
    further fields of `Subject`. Raises a ValueError if the store is damaged or does not have the plan's rows.
    """
    if not folder.is_dir():
        return None
    arrays, steps = read_saved_store(folder)
    if len(steps) != plan.rows or len(arrays) > 2:
        raise ValueError(
            f"{folder} holds {len(arrays)} columns of {len(steps)} rows, expected one or two of {plan.rows}, as the plan has."
        )
    batches = plan.order.reshape(-1, plan.batch_size)
    numbers = np.flatnonzero((steps != NEVER)[batches].all(axis=1))
    if not len(arrays) or not len(numbers):
        return None
    age = float((step - steps[batches[numbers]]).mean())
    return Subject(
        anchors=arrays[0],
        positives=arrays[-1],  # the same where a single column was planned on
        batches=batches[numbers],
        rows=np.arange(plan.rows),
        read_texts=texts.read,
        model=f"embeddings harvested in training, {age:.0f} steps before on average",
        numbers=numbers,
        batches_in_plan=len(batches),
        notes=notes,
        **described,
    )
