"""What is minimised: losses for batches that were composed, or that keep states of rows.

In: the embeddings of a batch. Out: one number.
May import: nothing of ours.
"""

from __future__ import annotations

from gcbs_st.losses.cached_guarded import CachedGuardedMultipleNegativesRankingLoss
from gcbs_st.losses.emc2 import EMC2Loss
from gcbs_st.losses.guarded import GuardedMultipleNegativesRankingLoss
from gcbs_st.losses.sogclr import SogCLRLoss

__all__ = [
    "CachedGuardedMultipleNegativesRankingLoss",
    "EMC2Loss",
    "GuardedMultipleNegativesRankingLoss",
    "SogCLRLoss",
]
