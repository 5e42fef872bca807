"""gcbs_st decides which rows train together; sentence-transformers does everything else.

corpus       n rows of text (anchor, positive[, negatives]), row ids 0..n-1
  | embeddings   one (n, d) float32 array of unit rows a text column
  | planners     (n,) int64, a bijection of 0..n-1; blocks of B rows are batches
  | sampler      lists of B row ids, the order of the batches shuffled
  v trainer      steps; every replan_steps goes back to embeddings            <- the only loop
evaluation   score records  ->  experiment (runs that differ in one thing)  ->  tables
"""

from __future__ import annotations

from gcbs_st.losses import EMC2Loss
from gcbs_st.trainer import GCBSTrainer, GCBSTrainingArguments

__all__ = ["EMC2Loss", "GCBSTrainer", "GCBSTrainingArguments", "__version__"]
__version__ = "0.1.0"
