"""What our studies of views, hardness and guards support for a model and its rows.

`planner="auto"` stands for it, `planner_view="auto"` for its view, and `gcbs-st advise` says it beforehand. It says what lost nowhere in them and won
in most (docs/which-batches-teach.md, docs/results.md), and no more: a handful of data sets is little to draw a rule from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

AUTO = "auto"
PLANNER = "bisect"  # that "auto" stands for

# The share of the negatives of random batches above which a guard masks what is no false negative: 39 % where it cost a
# raw encoder 8 points of MRR, 1 % and less where the model had been trained on pairs before.
MASKED_AT_RANDOM = 0.05


# Of the own positive's score: what scores above it looks like a false negative.
JUDGED_MARGIN = 0.95
# Of the negatives of planned batches, the share that look false from which batches are softer, and how hard they are then.
# The share grows with the rows that a plan sees: captions 3 % of 512 rows, 4 % of 1,024, 7 % of 4,096; questions stay at 0.3 %.
MOST_FALSE, SOFTER = 0.02, 0.5


@dataclass(frozen=True)
class Setting:
    """Whose embeddings are planned on, with the plain loss."""

    view: str  # "initial" or "model"
    why: str

    def __str__(self) -> str:
        """The setting as the log says it."""
        return f"the view {self.view!r}: {self.why}"


def supported_setting(model: Any) -> Setting:
    """Returns the setting for a model.

    >>> supported_setting(object()).view
    'initial'
    """
    if is_static(model):
        return Setting("model", "a static model learns from what it takes for alike itself, each epoch anew")
    return Setting("initial", "what a transformer takes for alike once it is trained means alike too often")


def supported_hardness(
    *, static: bool, masks: bool, has_negatives: bool, at_random: float, planned: float
) -> tuple[float, str]:
    """Returns how hard batches should be, in (0, 1], and why, in a sentence.

    `static` says whether the model averages word vectors, `masks` whether the loss leaves out negatives that it takes for
    false, and `has_negatives` whether rows have negatives of their own. `at_random` and `planned` are the shares, in [0, 1],
    of the negatives of random batches and of the hardest ones that score above 0.95 of the own positive.

    >>> supported_hardness(static=False, masks=False, has_negatives=False, at_random=0.0, planned=0.08)[0]
    0.5
    """
    if static:
        return 1.0, "Full hardness: for a static model it changes little."
    if masks:
        return 1.0, "Full hardness: the loss masks what looks like a false negative."
    if has_negatives:
        return 1.0, "Full hardness: rows have negatives of their own."
    if at_random > MASKED_AT_RANDOM:
        return 1.0, (
            f"Full hardness: {100 * at_random:.0f} % of the negatives of random batches score above {JUDGED_MARGIN} of the own "
            "positive, so this model is no judge of which are false."
        )
    share = f"{100 * planned:.1f} % of the negatives of the hardest batches look false"
    if planned < MOST_FALSE:
        return 1.0, f"Full hardness: only {share}."
    return SOFTER, (
        f"Half as hard as can be: {share}. On such data the hardest batches gained more STS and found fewer of the rows' own "
        "pairs than random ones; half as hard they gained both."
    )


def is_static(model: Any) -> bool:
    """Returns whether a model's embeddings are averages of vectors of its words."""
    modules = list(model.children()) if hasattr(model, "children") else []
    return bool(modules) and any(type(one).__name__ == "StaticEmbedding" for one in modules)
