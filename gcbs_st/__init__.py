"""gcbs_st decides which rows train together; sentence-transformers does everything else.

corpus       n rows of text (anchor, positive[, negatives]), row ids 0..n-1
  | embeddings   one (n, d) float32 array of unit rows per text column
  | planners     (n,) int64, a bijection of 0..n-1; blocks of B rows are batches
  | sampler      lists of B row ids, the order of the batches shuffled
  v trainer      steps; every replan_steps goes back to embeddings            <- the only loop
evaluation   score records  ->  experiment (runs that differ in one thing)  ->  tables
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gcbs_st.losses import EMC2Loss
    from gcbs_st.training.multi_vector_trainer import (
        GCBSMultiVectorEncoderTrainer,
        GCBSMultiVectorEncoderTrainingArguments,
    )
    from gcbs_st.training.sparse_trainer import GCBSSparseEncoderTrainer, GCBSSparseEncoderTrainingArguments
    from gcbs_st.training.trainer import GCBSTrainer, GCBSTrainingArguments

__all__ = [
    "EMC2Loss",
    "GCBSMultiVectorEncoderTrainer",
    "GCBSMultiVectorEncoderTrainingArguments",
    "GCBSSparseEncoderTrainer",
    "GCBSSparseEncoderTrainingArguments",
    "GCBSTrainer",
    "GCBSTrainingArguments",
    "__version__",
]
__version__ = "0.1.0"

_HOMES = {
    "EMC2Loss": "losses",
    "GCBSMultiVectorEncoderTrainer": "training.multi_vector_trainer",
    "GCBSMultiVectorEncoderTrainingArguments": "training.multi_vector_trainer",
    "GCBSSparseEncoderTrainer": "training.sparse_trainer",
    "GCBSSparseEncoderTrainingArguments": "training.sparse_trainer",
    "GCBSTrainer": "training.trainer",
    "GCBSTrainingArguments": "training.trainer",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: torch takes seconds, which `gcbs-st --help` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
