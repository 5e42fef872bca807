"""What the study of views, hardness and guards supports for a model and its rows (docs/which-batches-teach.md).

`planner_view="auto"` stands for it. Four settings on one machine are little to draw a rule from: it says what lost nowhere there
and won in most of them, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

AUTO = "auto"


@dataclass(frozen=True)
class Setting:
    """Whose embeddings are planned on, how hard batches are, and what the loss should mask."""

    view: str  # "initial" or "model"
    hardness: float  # as `planner_hardness`
    margin: float | None  # of a guarded loss; None for the plain one
    why: str

    def __str__(self) -> str:
        """The setting as the log says it."""
        if self.hardness == 0:
            return f"random batches: {self.why}"
        guard = "the plain loss" if self.margin is None else f"a loss guarded at {self.margin:g}"
        return f"the view {self.view!r}, hardness {self.hardness:g} and {guard}: {self.why}"


def supported_setting(model: Any, *, has_negatives: bool) -> Setting:
    """Returns the setting for a model, whose rows have negatives of their own or have not.

    >>> supported_setting(object(), has_negatives=True).hardness
    0.0
    """
    if has_negatives:
        return Setting("initial", 0.0, None, "rows that bring negatives of their own gained nothing from hard batches")
    if is_static(model):
        return Setting(
            "model", 1.0, None, "a static model learns from what it takes for alike itself, each epoch anew"
        )
    return Setting(
        "initial", 1.0, 0.95, "for a transformer, what it takes for alike once it is trained means alike too often"
    )


def is_static(model: Any) -> bool:
    """Returns whether a model's embeddings are averages of vectors of its words."""
    modules = list(model.children()) if hasattr(model, "children") else []
    return bool(modules) and any(type(one).__name__ == "StaticEmbedding" for one in modules)
