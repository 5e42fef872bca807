"""The rule: what is known of data, model and loss in, three lines for a training script out, or "do not use this".

It says what our experiments support (docs/results.md, docs/which-batches-teach.md) and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sentence_transformers.sentence_transformer import losses as host_losses

from gcbs_st import losses
from gcbs_st.advice.dataset_facts import DatasetFacts
from gcbs_st.advice.plan_figures import PlanFigures
from gcbs_st.losses.guarded import Guarded
from gcbs_st.training.loss_facts import GUIDED_LOSSES, WITHOUT_IN_BATCH_NEGATIVES
from gcbs_st.training.rule import PLANNER, supported_hardness

DEFAULT_LOSS = "MultipleNegativesRankingLoss"
# With fewer batches there is little to choose from, and an epoch is over before it teaches anything.
LEAST_BATCHES = 20
# A plan that closes less is no harder than random batches.
LEAST_CLOSED = 0.05


_ON_HARDNESS = (
    "planner='auto' sees to that itself. For STS alone: planner_hardness=1 and GuardedMultipleNegativesRankingLoss(model, "
    "margin=0.95)."
)


@dataclass(frozen=True)
class Recommendation:
    """What to do with some data, and why."""

    use: bool  # whether batches should be composed
    lines: tuple[str, ...]  # of a training script, none where nothing should change
    imports: tuple[str, ...]  # that they need
    why: tuple[str, ...]  # what it rests on, a sentence each


def known_losses() -> list[str]:
    """Returns the names of the losses for pairs of texts, the host's and ours, sorted."""
    modules: tuple[Any, ...] = (host_losses, losses)
    return sorted({name for module in modules for name in dir(module) if name.endswith("Loss")})


def refuse_early(facts: DatasetFacts, loss: str | None, batch_size: int) -> tuple[str, ...]:
    """Returns why composed batches cannot help, as far as rows and loss show it; empty if they may."""
    reasons = []
    name = loss or DEFAULT_LOSS
    if name in WITHOUT_IN_BATCH_NEGATIVES:
        reasons.append(
            f"{name} contrasts no rows of a batch with each other: which rows train together makes no difference to it."
        )
    elif facts.label is not None and loss is None:
        reasons.append(
            f"Rows have a column {facts.label!r}, which the host takes for labels. Losses that learn from labels contrast no "
            "rows of a batch. If yours does, name it with --loss."
        )
    if facts.one_text:
        reasons.append(
            "Anchor and positive are one text, of which dropout makes a pair. The hardest batches lost seven points there, and "
            "softer ones did not gain (docs/results.md), so planner='auto' leaves such rows in random batches."
        )
    if facts.rows < LEAST_BATCHES * batch_size:
        reasons.append(
            f"{facts.rows:,} rows are fewer than {LEAST_BATCHES} batches of {batch_size}: there is little to choose from."
        )
    return tuple(reasons)


def recommend(
    facts: DatasetFacts,
    figures: dict[str, PlanFigures],
    *,
    loss: str | None = None,
    batch_size: int,
    static: bool,
    group_column: str | None,
) -> Recommendation:
    """Returns the recommendation for data of which a sample was planned.

    `figures` are of the planners `random` and `bisect`; `loss` is the class that the user trains with, None for the
    default; `static` says whether the model averages word vectors; `group_column` is a column whose equal values
    mark rows that mean the same.
    """
    if reasons := refuse_early(facts, loss, batch_size):
        return keep_random(reasons)
    planned = figures[PLANNER]
    if planned.closed < LEAST_CLOSED:
        flat = (
            f"Planned batches close {planned.closed:.2f} of the gap that random ones leave: to this model no rows are much "
            "nearer to each other than others, so batches cannot be made harder."
        )
        return keep_random((flat,))
    name = loss or DEFAULT_LOSS
    hardness, reason = supported_hardness(
        static=static,
        masks=_masks(name),
        has_negatives=facts.has_negatives,
        at_random=figures["random"].guarded,
        planned=planned.guarded,
    )
    options = ['"out"', 'planner="auto"', f"per_device_train_batch_size={batch_size}"]
    columns = list(facts.columns)
    if group_column is not None:
        options.append(f'group_column="{group_column}"')
        columns.append(group_column)
    selected = ", ".join(f'"{column}"' for column in columns)
    view = (
        "its own embeddings, anew at each epoch"
        if static
        else "its embeddings before training, once: nothing to plan anew"
    )
    made = f"{name}(model)" if name == DEFAULT_LOSS else f"{name}(model)  # with the options that it has now"
    lines = (
        f"args = GCBSTrainingArguments({', '.join(options)})",
        f"loss = {made}",
        f"trainer = GCBSTrainer(model, args, dataset.select_columns([{selected}]), loss=loss)",
    )
    why = (
        f"planner='auto' stands for {PLANNER}, planned on {view}. In a sample it closes {planned.closed:.2f} of the gap that "
        "random batches leave, at full hardness.",
        reason,
        *([_ON_HARDNESS] if hardness < 1 else []),
        "Choose the learning rate anew, on a dev score: half and twice the one that random batches prefer, at least.",
    )
    module = "gcbs_st" if name in losses.__all__ else "sentence_transformers.sentence_transformer"
    imports = ("from gcbs_st import GCBSTrainer, GCBSTrainingArguments", f"from {module}.losses import {name}")
    return Recommendation(True, lines, imports, why)


def keep_random(why: tuple[str, ...]) -> Recommendation:
    """Returns the advice to change nothing."""
    return Recommendation(False, (), (), why)


def _masks(loss: str) -> bool:
    """Whether a loss leaves out negatives that it takes for false, as its defaults have it."""
    ours = getattr(losses, loss, None)
    return loss in GUIDED_LOSSES or (isinstance(ours, type) and issubclass(ours, Guarded))
