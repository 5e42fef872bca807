"""What the study of views, hardness and guards supports for a model and its rows (docs/which-batches-teach.md).

`planner="auto"` stands for it, and `planner_view="auto"` for its view. Four settings on one machine are little to draw a rule from: it says what lost
nowhere there and won in most of them, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

AUTO = "auto"
PLANNER = "bisect"  # that "auto" stands for

# The share of the negatives of random batches above which a guard masks what is no false negative: 39 % where it cost a
# raw encoder 8 points of MRR, 1 % and less where the model had been trained on pairs before.
MASKED_AT_RANDOM = 0.05


@dataclass(frozen=True)
class Setting:
    """Whose embeddings are planned on, and what the loss should mask. Batches are as hard as the planner makes them."""

    view: str  # "initial" or "model"
    # Of a guarded loss, if the model is a judge at all (see `MASKED_AT_RANDOM`); None for the plain one.
    margin: float | None
    why: str

    def __str__(self) -> str:
        """The setting as the log says it."""
        guard = "the plain loss"
        if self.margin is not None:
            guard = f"a loss guarded at {self.margin:g} for a model that was trained on pairs before, the plain one for a raw encoder"
        return f"the view {self.view!r} and {guard}: {self.why}"


def supported_setting(model: Any, *, has_negatives: bool) -> Setting:
    """Returns the setting for a model, whose rows have negatives of their own or have not.

    >>> supported_setting(object(), has_negatives=True).view
    'initial'
    """
    if is_static(model):
        return Setting("model", None, "a static model learns from what it takes for alike itself, each epoch anew")
    why = "what a transformer takes for alike once it is trained means alike too often"
    return Setting("initial", None if has_negatives else 0.95, why)


def is_static(model: Any) -> bool:
    """Returns whether a model's embeddings are averages of vectors of its words."""
    modules = list(model.children()) if hasattr(model, "children") else []
    return bool(modules) and any(type(one).__name__ == "StaticEmbedding" for one in modules)
