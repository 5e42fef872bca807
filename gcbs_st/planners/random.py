"""Random batches: what everybody does, and what every other planner is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gcbs_st.planners.base import BasePlanner


@dataclass(frozen=True, kw_only=True)
class RandomPlanner(BasePlanner):
    """A uniformly random order. O(n) time and memory.

    Attributes:
        measure: log the gap of the random batches as that of any plan, at the price of embedding the rows.
            The batches are the same.

    Example:
        >>> rows = np.eye(4)
        >>> sorted(RandomPlanner().plan(rows, rows, 2, np.random.default_rng(0)).tolist())
        [0, 1, 2, 3]
    """

    measure: bool = False

    @property
    def needs_embeddings(self) -> bool:
        """Whether somebody wants to know the gap of the random batches."""
        return self.measure

    def order_rows(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns (n,) int64, a random permutation of the rows."""
        return rng.permutation(len(anchors))
