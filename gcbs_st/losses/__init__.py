"""Losses for batches that were composed: what takes embeddings of a batch and gives one number to minimise."""

from __future__ import annotations

from gcbs_st.losses.cached_guarded import CachedGuardedMultipleNegativesRankingLoss
from gcbs_st.losses.guarded import GuardedMultipleNegativesRankingLoss

__all__ = ["CachedGuardedMultipleNegativesRankingLoss", "GuardedMultipleNegativesRankingLoss"]
