"""What trains together, as plain content: embeddings, batches and texts in, a dict that JSON can hold out.

Why: harder batches are an abstraction until one looks. The content says which texts share a batch, how alike they
are, and which negatives are probably none; `gcbs_st.reports.html` makes a page of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gcbs_st.planners.quality import SCALE, plan_quality
from gcbs_st.reports.inspection.batch_scores import (
    BatchMeasures,
    measure_batches,
    plain,
    products_of,
    similarity_matrix,
)

# What a page holds: beyond this a browser and its reader are overwhelmed, and the page passes 2 MB.
SHOWN_ROWS, SHOWN_BYTES = 3072, 800_000
ROWS_A_BATCH = 256
TEXT_LENGTH = 240
NEGATIVES = 3
# Rows and columns of a similarity matrix.
MATRIX_SIDE, BATCH_SIDE = 256, 64
# Products of anchors and positives that the plan's quality is measured on.
_PRODUCTS = 2**27

ReadTexts = Callable[[np.ndarray], Sequence[tuple[str, str]]]
Embed = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Subject:
    """What is to be inspected: m of the n rows of a corpus, and the batches of a plan that consist of them.

    Attributes:
        title: of the page.
        anchors: (m, d) floats, unit rows; may be a memory map.
        positives: (m, d) floats, unit rows; row i is the positive of anchor i.
        batches: (k, B) integers in [0, m).
        rows: (m,) ascending ids in [0, n).
        read_texts: ids -> (anchor, positive) each.
        model: whose embeddings these are, in words.
        numbers: (k,) place of each batch in the plan, from 0; None where all are here.
        batches_in_plan: how many batches the plan has; None where all are here.
        scale: 1 / temperature of the loss.
        earlier: model in words -> ids -> its embeddings of anchors and positives, for a second look at the same rows.
        facts: label -> value, shown first.
        notes: sentences about where all of this comes from.
    """

    title: str
    anchors: np.ndarray
    positives: np.ndarray
    batches: np.ndarray
    rows: np.ndarray
    read_texts: ReadTexts
    model: str
    numbers: np.ndarray | None = None
    batches_in_plan: int | None = None
    scale: float = SCALE
    earlier: Mapping[str, Embed] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def complete(self) -> bool:
        """Whether all batches of the plan are here."""
        return self.batches_in_plan is None or self.batches_in_plan == len(self.batches)


def choose_batches(loss: np.ndarray, batch_size: int) -> list[tuple[str, np.ndarray]]:
    """Returns the batches that a page shows, the hardest first.

    Args:
        loss: (k,) of each batch.
        batch_size: rows a batch.

    Returns:
        Title and (j,) batches: "all", or "hardest", "middle" and "easiest" where they would be too many. NaN is
        last, and equal ones stand as in the plan.
    """
    order = np.argsort(-loss, kind="stable")
    room = max(3, SHOWN_ROWS // min(batch_size, ROWS_A_BATCH))
    if len(order) <= room:
        return [("all", order)]
    third = room // 3
    middle = (len(order) - third) // 2
    return [("hardest", order[:third]), ("middle", order[middle : middle + third]), ("easiest", order[-third:])]


def inspect_plan(subject: Subject) -> dict[str, Any]:
    """Returns the content of a page about a plan.

    Cost: all batches are measured, k B^2 d, and the quality of the plan on a sample, about 2^27 d; texts are read of
    the rows that are shown alone.

    Args:
        subject: what is inspected.

    Returns:
        "title", "model", "summary" (label, value), "notes", "shown", "groups" of batches, and "matrices"; numbers that
        are not known are None.

    Raises:
        ValueError: no batch, rows that are not finite, or texts that cannot be read.
    """
    if not len(subject.batches):
        raise ValueError(
            f"got {len(subject.rows)} rows with embeddings, expected at least a batch of {subject.batches.shape[1]}."
        )
    measures = measure_batches(subject.anchors, subject.positives, subject.batches, scale=subject.scale)
    groups = [(title, list(chosen)) for title, chosen in choose_batches(measures.loss, subject.batches.shape[1])]
    described = _within_budget(groups, _describe_batches(subject, measures, [b for _, some in groups for b in some]))
    shown = sum(len(batches) for _, batches in described)
    notes = [*subject.notes, *_notes(subject, shown)]
    return {
        "title": subject.title,
        "model": subject.model,
        "summary": [*map(list, subject.facts.items()), *_figures(subject, measures)],
        "notes": notes,
        "text_length": TEXT_LENGTH,
        "groups": [{"title": title, "batches": batches} for title, batches in described if batches],
        "matrices": _matrices(subject),
    }


def _figures(subject: Subject, measures: BatchMeasures) -> list[list[str]]:
    """Labels and values of the plan as a whole."""
    size = subject.batches.shape[1]
    figures = [
        ["Batches", f"{subject.batches_in_plan or len(subject.batches):,} of {size:,} rows each"],
        ["In-batch loss", f"{measures.loss.mean():.3f} nats at scale {subject.scale:g}"],
        [
            "Probable false negatives",
            f"{measures.false_negatives.mean():.2f} a row; {measures.tainted.mean():.1%} of the rows have one",
        ],
    ]
    if not subject.complete:
        return [*figures, ["Closed, tail coverage", "not measured: they need the embeddings of all rows"]]
    sample = min(4096, max(2 * size, _PRODUCTS // len(subject.rows)))
    quality = plan_quality(
        subject.anchors,
        subject.positives,
        subject.batches.ravel(),
        size,
        scale=subject.scale,
        sample_rows=sample,
    )
    rows = min(quality.rows_used, sample // size * size)
    of_all = [
        ["Closed", f"{quality.closed:.3f} of the closable gap (random batches: 0), measured on {rows:,} rows"],
        ["Tail coverage", f"{quality.tail_coverage:.1%} of a row's 10 hardest negatives are in its batch"],
        ["Gap", f"{quality.gap:.3f} nats; bound {quality.gap_bound:.3f}"],
    ]
    return [figures[0], *of_all, *figures[1:]]


def _notes(subject: Subject, shown: int) -> list[str]:
    notes = [f"All similarities are by {subject.model}."]
    count = len(subject.batches)
    if not subject.complete:
        notes.append(
            f"Measured are {count:,} of the plan's {subject.batches_in_plan:,} batches: those whose embeddings are at hand."
        )
    if shown < count:
        notes.append(
            f"This page holds {shown:,} of {count:,} batches: the hardest, some of the middle and the easiest."
        )
    if subject.batches.shape[1] > ROWS_A_BATCH:
        notes.append(f"Of each batch the {ROWS_A_BATCH} hardest rows are here, of {subject.batches.shape[1]:,}.")
    return notes


def _describe_batches(subject: Subject, measures: BatchMeasures, chosen: Sequence[int]) -> list[dict[str, Any]]:
    """The batches with their rows, texts and hardest negatives; each text is read once."""
    described, wanted = [], []
    for batch in chosen:
        members = subject.batches[batch]
        scores = products_of(subject.anchors, subject.positives, members[None])[0]
        rows, ids = _describe_rows(scores, subject.rows[members])
        number = batch if subject.numbers is None else subject.numbers[batch]
        described.append(
            {
                "number": int(number),
                "loss": plain(measures.loss[batch]),
                "hardest": plain(measures.hardest[batch]),
                "false_negatives": int(round(measures.false_negatives[batch] * len(members))),
                "tainted": int(round(measures.tainted[batch] * len(members))),
                **rows,
            }
        )
        wanted.append(ids)
    distinct = np.unique(np.concatenate(wanted))
    texts = dict(zip(distinct.tolist(), subject.read_texts(distinct), strict=True))
    for entry, ids in zip(described, wanted, strict=True):
        entry["texts"] = [[_shorten(text) for text in texts[row]] for row in ids.tolist()]
    return described


def _describe_rows(scores: np.ndarray, ids: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """The rows of a batch that are shown, and the ids of all rows whose texts that takes, the shown ones first.

    A row is [id, own score, its probable false negatives, [[place of the negative among the texts, score], ...]].
    """
    size = len(scores)
    own = np.diagonal(scores).copy()
    negatives = scores.copy()
    np.fill_diagonal(negatives, -np.inf)
    shown = np.arange(size)
    if size > ROWS_A_BATCH:
        shown = np.sort(np.argsort(-(negatives.max(axis=1) - own), kind="stable")[:ROWS_A_BATCH])
    hardest = np.argsort(-negatives[shown], axis=1, kind="stable")[:, : min(NEGATIVES, size - 1)]
    places = list(dict.fromkeys([*shown.tolist(), *hardest.ravel().tolist()]))
    place_of = {member: place for place, member in enumerate(places)}
    rows = [
        [
            int(ids[row]),
            plain(own[row]),
            int((negatives[row] > own[row]).sum()),
            [[place_of[member], plain(negatives[row, member])] for member in near.tolist()],
        ]
        for row, near in zip(shown.tolist(), hardest, strict=True)
    ]
    return {"rows": rows, "ids": ids[places].tolist()}, ids[places]


def _shorten(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


def _within_budget(
    groups: Sequence[tuple[str, Sequence[int]]], described: Sequence[dict[str, Any]]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """The groups without what would make the page too large: of each group the same share, at least the hardest batch.

    Of the hardest group the end is dropped, of the others what is farthest from their name.
    """
    queue = iter(described)
    parts = [(title, [next(queue) for _ in batches]) for title, batches in groups]
    total = sum(_bytes_of(batch) for _, batches in parts for batch in batches)
    share = min(1.0, SHOWN_BYTES / max(1, total))
    kept = []
    for title, batches in parts:
        count = max(int(title in ("all", "hardest")), int(share * len(batches)))
        start = {"easiest": len(batches) - count, "middle": (len(batches) - count) // 2}.get(title, 0)
        if title == "all" and count < len(batches):
            # As with many batches: both ends and the middle.
            picked = np.unique(np.linspace(0, len(batches) - 1, count).astype(int))
            kept.append((title, [batches[place] for place in picked]))
        else:
            kept.append((title, batches[start : start + count]))
    return kept


def _bytes_of(batch: Mapping[str, Any]) -> int:
    """About what a batch takes in the page."""
    texts = sum(len(text.encode("utf-8", "replace")) + 4 for pair in batch["texts"] for text in pair)
    return texts + 60 * len(batch["rows"])


def _matrices(subject: Subject) -> list[dict[str, Any]]:
    """Similarities in random batches and in the plan's, by each model: before planning and after it."""
    size = subject.batches.shape[1]
    width = min(size, BATCH_SIDE)
    count = max(1, min(len(subject.batches), len(subject.rows) // width, 16, MATRIX_SIDE // width))
    shuffled = np.random.default_rng(0).permutation(len(subject.rows))
    picked = np.linspace(0, len(subject.batches) - 1, count).astype(int)
    orders = {
        "Before planning: random batches": np.resize(shuffled, (count, width)),
        "The plan": subject.batches[picked, :width],
    }
    models: dict[str, Embed] = {**subject.earlier, subject.model: lambda _: (subject.anchors, subject.positives)}
    matrices = []
    for model, embed in models.items():
        for title, blocks in orders.items():
            places = blocks.ravel()
            here = model == subject.model
            anchors, positives = embed(subject.rows[places])
            left, right = (array[places] if here else array for array in (anchors, positives))
            scores = np.asarray(left, np.float32) @ np.asarray(right, np.float32).T
            matrices.append({"title": title, "model": model, **similarity_matrix(scores, width)})
    return matrices
