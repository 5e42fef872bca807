"""Losses for composed batches, and losses that keep a state for each row: the embeddings of a batch in, a scalar out.

May import: nothing of ours.
"""

from __future__ import annotations

from gcbs_st.losses.cached_guarded import CachedGuardedMultipleNegativesRankingLoss
from gcbs_st.losses.emc2 import EMC2Loss
from gcbs_st.losses.guarded import GuardedMultipleNegativesRankingLoss
from gcbs_st.losses.own_negatives import OwnNegativesRankingLoss
from gcbs_st.losses.sogclr import SogCLRLoss

__all__ = [
    "CachedGuardedMultipleNegativesRankingLoss",
    "EMC2Loss",
    "GuardedMultipleNegativesRankingLoss",
    "OwnNegativesRankingLoss",
    "SogCLRLoss",
]
