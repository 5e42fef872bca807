"""What training starts from.

In: a name and options. Out: a model.
May import: nothing of ours.
"""

from __future__ import annotations

from typing import Any

__all__ = ["TrainingHead"]


def __getattr__(name: str) -> Any:
    """Imports the head when a saved model asks for it by the name that it was saved under."""
    if name == "TrainingHead":
        from gcbs_st.models.load import TrainingHead

        return TrainingHead
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
