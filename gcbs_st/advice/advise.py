"""A dataset and a model in, advice out: what `gcbs-st advise` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from gcbs_st.advice.dataset_facts import DatasetFacts, find_dataset_facts
from gcbs_st.advice.plan_figures import (
    FalseNegative,
    PlanFigures,
    measure_plans,
    planning_seconds,
    share_of_group_mates,
    worst_false_negatives,
)
from gcbs_st.advice.recommend import Recommendation, keep_random, recommend, refuse_early
from gcbs_st.advice.sample import TEXTS_PER_PASS, Sample, embed_sample
from gcbs_st.batches.shared_values import SharedValues
from gcbs_st.embeddings.encode import encode_rows
from gcbs_st.rows.columns import TextColumn
from gcbs_st.training.rule import PLANNER, is_static

SCALE = 20.0
_EXAMPLES = 8
# Half of random texts are nearer than the positive where the two sides have nothing to do with each other.
_UNRELATED = 0.4
# Pairs of rows that tell whether equal values of a column mean that rows are alike, and columns that are asked.
_ASKED_PAIRS, _ASKED_COLUMNS = 128, 3
# Rows of one value mean the same if at least this share of them looks like it, and three times that of rows of two values.
_LEAST_ALIKE, _TIMES_STRANGERS = 0.25, 3


@dataclass(frozen=True)
class Group:
    """A column whose values may say which rows mean the same."""

    column: str
    mates: float  # share of pairs of rows of one value that the model takes for paraphrases, in [0, 1]
    strangers: float  # the same of rows of two values

    @property
    def means_alike(self) -> bool:
        """Whether rows of one value mean the same."""
        return self.mates >= max(_LEAST_ALIKE, _TIMES_STRANGERS * self.strangers)


@dataclass(frozen=True)
class Example:
    """A probable false negative, in words."""

    anchor: str
    positive: str
    negative: str  # the positive of another row of the same planned batch
    own: float  # cosine of anchor and positive
    score: float  # of anchor and negative


@dataclass(frozen=True)
class Cost:
    """What planning adds to a training of all rows, in seconds on this machine."""

    embedding: float  # each text once
    planning: float  # one plan
    plans: str  # how often that is


@dataclass(frozen=True)
class Advice:
    """Whether to compose batches of some rows for some model, and what that rests on."""

    facts: DatasetFacts
    batch_size: int
    groups: tuple[Group, ...]
    sampled_rows: int  # 0 where rows and loss alone said no
    notes: tuple[str, ...]  # on the sample
    figures: dict[str, PlanFigures]  # by planner
    examples: tuple[Example, ...]
    cost: Cost | None
    recommendation: Recommendation

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return asdict(self)


def advise(  # noqa: PLR0913 - a keyword for each choice
    dataset: Dataset,
    columns: Sequence[str],
    open_model: Any,
    *,
    batch_size: int = 64,
    loss: str | None = None,
    group_column: str | None = None,
    prompts: tuple[str, str] = ("", ""),
    seconds: float = 30.0,
    sample_rows: int | None = None,
    show_progress: bool = False,
) -> Advice:
    """Returns advice on a dataset's rows.

    Args:
        dataset: the rows, with any columns.
        columns: of texts: anchors, positives, negatives; one column is both sides.
        open_model: returns the SentenceTransformer; called only if rows and loss leave the question open.
        batch_size: rows per batch.
        loss: the class of the loss by name; None for MultipleNegativesRankingLoss.
        group_column: a column whose equal values are known to mark rows that mean the same; None to look for one.
        prompts: what training puts before anchors and positives.
        seconds: about how long to embed.
        sample_rows: rows to embed instead.
        show_progress: on standard error.

    Returns:
        The advice. Raises a ValueError for columns that are not there or hold no texts, for fewer than two rows with texts,
        and a batch size below 2.
    """
    if batch_size < 2:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 2 rows")
    if group_column is not None and group_column not in dataset.column_names:
        raise ValueError(f"group column: got {group_column!r}, expected one of {', '.join(dataset.column_names)}")
    if group_column is not None and group_column in columns:
        raise ValueError(f"group column: got {group_column!r}, which is a column of texts that are trained on")
    facts, rows = find_dataset_facts(dataset, columns, batch_size)
    if reasons := refuse_early(facts, loss, batch_size):
        return Advice(facts, batch_size, (), 0, (), {}, (), None, keep_random(reasons))
    model = open_model()
    sides = [TextColumn(name, prompt) for name, prompt in zip(columns[:2], prompts, strict=False)]
    groups = [] if group_column is not None else _look_for_groups(model, rows, sides, facts.group_columns)
    chosen = group_column or next((group.column for group in groups if group.means_alike), None)
    sample = embed_sample(model, rows, sides, seconds=seconds, row_count=sample_rows, show_progress=show_progress)
    size = min(batch_size, max(2, len(sample.rows) // 4))
    shared = _shared_values(rows, sample, columns, chosen)
    figures, batches = measure_plans(sample, shared, size, [PLANNER, "best"], scale=SCALE)
    static = is_static(model)
    recommendation = recommend(facts, figures, loss=loss, batch_size=batch_size, static=static, group_column=chosen)
    return Advice(
        facts,
        batch_size,
        tuple(groups),
        len(sample.rows),
        tuple(_notes(facts, sample, size, batch_size, figures["random"])),
        figures,
        tuple(_in_words(rows, columns, worst_false_negatives(sample, batches[PLANNER], _EXAMPLES))),
        _cost(facts, sample, batch_size, static),
        recommendation,
    )


def _look_for_groups(model: Any, dataset: Dataset, sides: Sequence[TextColumn], names: Sequence[str]) -> list[Group]:
    """What equal values of the columns mean, the most alike first; columns that say no more than equal texts left out."""
    found = []
    for name in names[:_ASKED_COLUMNS]:
        pairs = _pairs_of_equals(dataset, name, [side.name for side in sides])
        if len(pairs) >= 4:
            arrays = encode_rows(model, dataset, np.array(pairs), sides, batch_size=TEXTS_PER_PASS)
            found.append(Group(name, *share_of_group_mates(arrays[0], arrays[-1])))
    return sorted(found, key=lambda group: -group.mates)


def _pairs_of_equals(dataset: Dataset, column: str, texts: Sequence[str]) -> list[int]:
    """Rows, two by two, that share a value of the column and no text, which would keep them apart anyway."""
    plain = dataset.with_format(None)
    values, sides = plain[column][:], [plain[name][:] for name in texts]
    first: dict[Any, int] = {}
    pairs: list[int] = []
    for row in np.random.default_rng(0).permutation(len(values)).tolist():
        if len(pairs) == 2 * _ASKED_PAIRS:
            break
        if values[row] is None:
            continue
        if (mate := first.pop(values[row], None)) is None:
            first[values[row]] = row
        elif not {side[row] for side in sides} & {side[mate] for side in sides}:
            pairs += [mate, row]
    return pairs


def _shared_values(
    dataset: Dataset, sample: Sample, columns: Sequence[str], group_column: str | None
) -> SharedValues | None:
    """The values of the sample's rows that the trainer would keep apart."""
    drawn = dataset.select(sample.rows)
    groups = None if group_column is None else list(drawn.with_format(None)[group_column])
    return SharedValues.from_dataset(drawn.select_columns(list(columns)), columns, groups=groups) or None


def _notes(facts: DatasetFacts, sample: Sample, size: int, batch_size: int, at_random: PlanFigures) -> list[str]:
    notes = []
    if (share := at_random.false_negatives / (size - 1)) > _UNRELATED:
        notes.append(
            f"{100 * share:.0f} % of random negatives score above the row's own positive: to this model the pairs do not "
            "belong together. Are these the right columns?"
        )
    if len(sample.rows) < facts.rows:
        notes.append(
            f"All {facts.rows:,} rows hold nearer ones than this sample, so their planned batches are harder, and hold more "
            "false negatives."
        )
    if sample.cut:
        notes.append("Texts were cut to 128 tokens for this, since whole ones would have taken too long.")
    if sample.dropped:
        notes.append(f"The model makes nothing of the texts of {sample.dropped:,} further rows.")
    if size < batch_size:
        notes.append(
            f"The sample's batches hold {size} rows, not {batch_size}, since it has only {len(sample.rows):,}."
        )
    return notes


def _in_words(dataset: Dataset, columns: Sequence[str], found: Sequence[FalseNegative]) -> list[Example]:
    anchor, positive = columns[0], columns[min(1, len(columns) - 1)]
    return [
        Example(dataset[one.row][anchor], dataset[one.row][positive], dataset[one.other][positive], one.own, one.score)
        for one in found
    ]


def _cost(facts: DatasetFacts, sample: Sample, batch_size: int, static: bool) -> Cost:
    plans = "at each epoch's start" if static else "once, for all epochs and further runs"
    planning = planning_seconds(PLANNER, facts.rows, sample.anchors.shape[1], batch_size)
    return Cost(facts.rows / sample.rows_per_second, planning, plans)
