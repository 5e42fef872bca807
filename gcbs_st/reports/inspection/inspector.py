"""Embeddings, batches and texts in, the content of a page out, as a dict that JSON can hold."""

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

# What a page holds at most: more would overwhelm a browser and its reader, and the page would pass 2 MB.
SHOWN_ROWS, SHOWN_BYTES = 3072, 800_000
ROWS_A_BATCH = 256
TEXT_LENGTH = 240
NEGATIVES = 3
MATRIX_SIDE, BATCH_SIDE = 256, 64  # rows of a similarity matrix, in all and per batch
_PRODUCTS = 2**27  # of anchors and positives, that the plan's quality is measured on

ReadTexts = Callable[[np.ndarray], Sequence[tuple[str, str]]]
Embed = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Subject:
    """What is to be inspected: m of the n rows of a corpus, and the batches of a plan that consist of them."""

    title: str
    anchors: np.ndarray  # (m, d) floats, unit rows; may be a memory map
    positives: np.ndarray  # (m, d) floats, unit rows; row i is the positive of anchor i
    batches: np.ndarray  # (k, B) integers in [0, m)
    rows: np.ndarray  # (m,) ascending ids in [0, n)
    read_texts: ReadTexts
    model: str  # whose embeddings these are, in words
    numbers: np.ndarray | None = None  # (k,) place of each batch in the plan, from 0; None if all are here
    batches_in_plan: int | None = None  # None if all are here
    scale: float = SCALE  # 1 / temperature of the loss
    earlier: Mapping[str, Embed] = field(default_factory=dict)  # by model, for a second look at the same rows
    facts: Mapping[str, str] = field(default_factory=dict)  # label -> value, shown first
    notes: Sequence[str] = ()

    @property
    def complete(self) -> bool:
        """Whether all batches of the plan are here."""
        return self.batches_in_plan is None or self.batches_in_plan == len(self.batches)


def choose_batches(loss: np.ndarray, batch_size: int) -> list[tuple[str, np.ndarray]]:
    """Returns the batches that a page shows, the hardest first, in groups: title and (j,) numbers.

    The groups are "all", or "hardest", "middle" and "easiest" if all are too many. NaN comes last, and equal losses stay
    in the order of the plan.
    """
    order = np.argsort(-loss, kind="stable")
    room = max(3, SHOWN_ROWS // min(batch_size, ROWS_A_BATCH))
    if len(order) <= room:
        return [("all", order)]
    third = room // 3
    middle = (len(order) - third) // 2
    return [("hardest", order[:third]), ("middle", order[middle : middle + third]), ("easiest", order[-third:])]


def inspect_plan(subject: Subject) -> dict[str, Any]:
    """Returns the content of a page about a plan; unknown numbers are None.

    Cost: k B^2 d to measure all batches, and about 2^27 d for the quality of the plan on a sample; texts are read only of
    the rows that are shown. Raises a ValueError if there is no batch, or a row that is not finite.
    """
    if not len(subject.batches):
        raise ValueError(
            f"got {len(subject.rows)} rows with embeddings, expected at least a batch of {subject.batches.shape[1]}."
        )
    measures = measure_batches(subject.anchors, subject.positives, subject.batches, scale=subject.scale)
    groups = choose_batches(measures.loss, subject.batches.shape[1])
    described = iter(_describe_batches(subject, measures, [batch for _, chosen in groups for batch in chosen]))
    kept = _within_budget([(title, [next(described) for _ in chosen]) for title, chosen in groups])
    return {
        "title": subject.title,
        "model": subject.model,
        "summary": [*map(list, subject.facts.items()), *_figures(subject, measures)],
        "notes": [*subject.notes, *_notes(subject, sum(len(batches) for _, batches in kept))],
        "text_length": TEXT_LENGTH,
        "groups": [{"title": title, "batches": batches} for title, batches in kept if batches],
        "matrices": _matrices(subject),
    }


def _figures(subject: Subject, measures: BatchMeasures) -> list[list[str]]:
    size = subject.batches.shape[1]
    wrong = f"{measures.false_negatives.mean():.2f} per row; {measures.tainted.mean():.1%} of the rows have one"
    batches = ["Batches", f"{subject.batches_in_plan or len(subject.batches):,} of {size:,} rows each"]
    loss = ["In-batch loss", f"{measures.loss.mean():.3f} nats at scale {subject.scale:g}"]
    false_negatives = ["Probable false negatives", wrong]
    if not subject.complete:
        missing = ["Closed, tail coverage", "not measured: they need the embeddings of all rows"]
        return [batches, loss, false_negatives, missing]
    sample = min(4096, max(2 * size, _PRODUCTS // len(subject.rows)))
    order = subject.batches.ravel()
    quality = plan_quality(subject.anchors, subject.positives, order, size, scale=subject.scale, sample_rows=sample)
    rows = min(quality.rows_used, sample // size * size)
    return [
        batches,
        ["Closed", f"{quality.closed:.3f} of the closable gap (random batches: 0), measured on {rows:,} rows"],
        ["Tail coverage", f"{quality.tail_coverage:.1%} of a row's 10 hardest negatives are in its batch"],
        ["Gap", f"{quality.gap:.3f} nats; bound {quality.gap_bound:.3f}"],
        loss,
        false_negatives,
    ]


def _notes(subject: Subject, shown: int) -> list[str]:
    notes = [f"All similarities are by {subject.model}."]
    count = len(subject.batches)
    if not subject.complete:
        whole = subject.batches_in_plan
        notes.append(f"Measured are {count:,} of the plan's {whole:,} batches: those whose embeddings are at hand.")
    if shown < count:
        which = "the hardest, some of the middle and the easiest"
        notes.append(f"This page holds {shown:,} of {count:,} batches: {which}.")
    if subject.batches.shape[1] > ROWS_A_BATCH:
        notes.append(f"Of each batch the {ROWS_A_BATCH} hardest rows are here, of {subject.batches.shape[1]:,}.")
    return notes


def _describe_batches(subject: Subject, measures: BatchMeasures, chosen: Sequence[int]) -> list[dict[str, Any]]:
    """Returns batches with their rows, texts and hardest negatives; each text is read once."""
    described: list[dict[str, Any]] = []
    for batch in chosen:
        members = subject.batches[batch]
        scores = products_of(subject.anchors, subject.positives, members[None])[0]
        rows, ids = _describe_rows(scores, subject.rows[members])
        number = batch if subject.numbers is None else subject.numbers[batch]
        entry: dict[str, Any] = {
            "number": int(number),
            "loss": plain(measures.loss[batch]),
            "hardest": plain(measures.hardest[batch]),
        }
        for key in ("false_negatives", "tainted"):
            entry[key] = int(round(getattr(measures, key)[batch] * len(members)))
        described.append({**entry, "rows": rows, "ids": ids.tolist()})
    distinct = np.unique(np.concatenate([entry["ids"] for entry in described]))
    texts = dict(zip(distinct.tolist(), subject.read_texts(distinct), strict=True))
    for entry in described:
        entry["texts"] = [[_shorten(text) for text in texts[row]] for row in entry["ids"]]
    return described


def _describe_rows(scores: np.ndarray, ids: np.ndarray) -> tuple[list[list[Any]], np.ndarray]:
    """Returns the rows of a batch that are shown, and the ids of all rows whose texts that takes, the shown ones first.

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
    return rows, ids[places]


def _shorten(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


def _within_budget(groups: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns the same share of each group, so that the page is not too large, but at least the hardest batch.

    The hardest group loses its end, the others what is farthest from their name.
    """
    share = min(1.0, SHOWN_BYTES / max(1, sum(_bytes_of(batch) for _, batches in groups for batch in batches)))
    kept = []
    for title, batches in groups:
        count = max(int(title in ("all", "hardest")), int(share * len(batches)))
        if title == "all":
            # As with many batches: both ends and the middle.
            places = np.unique(np.linspace(0, len(batches) - 1, count).astype(int))
            kept.append((title, [batches[place] for place in places]))
        else:
            start = {"easiest": len(batches) - count, "middle": (len(batches) - count) // 2}.get(title, 0)
            kept.append((title, batches[start : start + count]))
    return kept


def _bytes_of(batch: Mapping[str, Any]) -> int:
    """Returns about what a batch takes in the page."""
    texts = sum(len(text.encode("utf-8", "replace")) + 4 for pair in batch["texts"] for text in pair)
    return texts + 60 * len(batch["rows"])


def _matrices(subject: Subject) -> list[dict[str, Any]]:
    width = min(subject.batches.shape[1], BATCH_SIDE)
    count = max(1, min(len(subject.batches), len(subject.rows) // width, 16, MATRIX_SIDE // width))
    shuffled = np.random.default_rng(0).permutation(len(subject.rows))
    picked = np.linspace(0, len(subject.batches) - 1, count).astype(int)
    orders = {
        "Before planning: random batches": np.resize(shuffled, count * width),
        "The plan": subject.batches[picked, :width].ravel(),
    }
    matrices = []
    for model, embed in {**subject.earlier, subject.model: None}.items():
        for title, places in orders.items():
            sides = embed(subject.rows[places]) if embed else (subject.anchors[places], subject.positives[places])
            left, right = (np.asarray(side, np.float32) for side in sides)
            matrices.append({"title": title, "model": model, **similarity_matrix(left @ right.T, width)})
    return matrices
