"""Random batches: what everybody does, and what every other planner is compared with."""

from __future__ import annotations

import numpy as np

from gcbs_st.planners.base import check_pairs


class RandomPlanner:
    """A uniformly random order. O(n) time and memory.

    Example:
        >>> import numpy as np
        >>> rows = np.eye(4)
        >>> sorted(RandomPlanner().plan(rows, rows, 2, np.random.default_rng(0)).tolist())
        [0, 1, 2, 3]
    """

    def __init__(self, *, measure: bool = False) -> None:
        """Takes whether the trainer is to embed the rows all the same.

        Args:
            measure: log the gap of the random batches as that of any plan, at the price of embedding the rows.
                The batches are the same.
        """
        self.measure = measure

    def plan(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns (n,) int64, a random permutation of the rows.

        Args:
            anchors: (n, d) floats, unit rows.
            positives: (n, d) floats, unit rows.
            batch_size: rows a batch.
            rng: where the randomness comes from.

        Returns:
            The order of the rows.

        Raises:
            ValueError: input that no planner takes, see `gcbs_st.planners.base.check_pairs`.
        """
        check_pairs(anchors, positives, batch_size)
        return rng.permutation(len(anchors))
