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
    """Whose embeddings are planned on. Batches are as hard as the planner makes them, and the loss is the plain one."""

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


def is_static(model: Any) -> bool:
    """Returns whether a model's embeddings are averages of vectors of its words."""
    modules = list(model.children()) if hasattr(model, "children") else []
    return bool(modules) and any(type(one).__name__ == "StaticEmbedding" for one in modules)
