"""Recursive balanced 2-means on the embeddings alone, no neighbour graph: the planner for a million rows.

The tree itself is in `trees.py`; `partition` and `best` start from the same order and share the functions below.

Dahiya et al., "NGAME: Negative Mining-aware Mini-batching for Extreme Classification", arXiv 2207.04452.
"""

from __future__ import annotations

import numpy as np

from gcbs_st.planners.base import check_pairs
from gcbs_st.planners.trees import DIMS, grow_trees, project_pairs


class BisectPlanner:
    """Recursive balanced 2-means, down to one cluster a leaf.

    A node is cut at a multiple of the leaf's rows by the bisector of two means, moved so that each side has its
    share of the rows. Neighbouring leaves come from one parent.

    Cost: O(n d dims + n dims log(n / B) trees) time, O(n dims) memory beside the embeddings, which may be half
    precision or a memory map.

    NGAME names no number of axes, sweeps or trees. Our choices: a row's vector is anchor + positive, on its
    main `dims` axes; large nodes find their means on a sample; of several trees the one with the tightest
    leaves (largest mean squared norm of their centroids) is taken; n mod B rows drawn at random fill no batch.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(100, 8))
        >>> order = BisectPlanner(trees=1).plan(rows, rows, 10, np.random.default_rng(0))
        >>> sorted(order.tolist()) == list(range(100))
        True
    """

    def __init__(
        self,
        *,
        dims: int = DIMS,
        sweeps: int = 10,
        sample: int = 2048,
        trees: int = 4,
        clusters_per_batch: int = 1,
        threads: int = 0,
    ) -> None:
        """Takes how the tree is grown and how its leaves become batches.

        Args:
            dims: axes kept.
            sweeps: 2-means steps of a split.
            sample: rows of a node that take part in them, at least 2; the last assignment takes all.
            trees: grown, of which the tightest is taken.
            clusters_per_batch: random clusters of B / clusters_per_batch rows that make a batch; 1 is
                hardest, B is a random plan.
            threads: at work at once, 0 for one a core. The order does not depend on it.

        Raises:
            ValueError: an option out of its range.
        """
        check_least(1, dims=dims, sweeps=sweeps, sample=sample - 1, trees=trees, clusters_per_batch=clusters_per_batch)
        check_least(0, threads=threads)
        self.dims = dims
        self.sweeps = sweeps
        self.sample = sample
        self.trees = trees
        self.clusters_per_batch = clusters_per_batch
        self.threads = threads

    def plan(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns (n,) int64, the order of the rows.

        Args:
            anchors: (n, d) floats, unit rows.
            positives: (n, d) floats, unit rows; row i is the positive of anchor i.
            batch_size: rows a batch, a multiple of `clusters_per_batch`.
            rng: draws the starts of the means, the rows of the remainder and the combination of clusters.

        Returns:
            The order of the rows; the last n mod B fill no batch.

        Raises:
            ValueError: input that no planner takes, see `gcbs_st.planners.base.check_pairs`; a batch size
                that is no multiple of `clusters_per_batch`.
        """
        anchors, positives = check_pairs(anchors, positives, batch_size)
        size = cluster_rows(batch_size, self.clusters_per_batch)
        rows, rest = draw_rest(len(anchors), batch_size, rng)
        if len(rows) > size > 1:
            points = project_pairs(anchors, positives, rows, self.dims, rng, threads=self.threads)
            settings = (self.sweeps, self.sample)
            rows = rows[grow_trees(points, size, rng, trees=self.trees, settings=settings, threads=self.threads)]
        return finish_order(rows, rest, size, batch_size, rng)


def draw_rest(n: int, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows that fill whole batches, ascending, and the n mod B random rows that fill none."""
    rest = rng.choice(n, n % batch_size, replace=False) if n % batch_size else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(n), rest, assume_unique=True), rest.astype(np.int64)


def cluster_rows(batch_size: int, clusters_per_batch: int) -> int:
    """Returns the rows of a cluster.

    Args:
        batch_size: rows a batch.
        clusters_per_batch: clusters that make one.

    Returns:
        Their quotient.

    Raises:
        ValueError: it is no whole number.
    """
    if batch_size % clusters_per_batch:
        raise ValueError(
            f"clusters_per_batch: got {clusters_per_batch} with batches of {batch_size} rows, expected a divisor of "
            f"{batch_size}, so that all clusters have the same number of rows."
        )
    return batch_size // clusters_per_batch


def finish_order(
    order: np.ndarray, rest: np.ndarray, size: int, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns the whole order, after shuffling its clusters where a batch is made of several.

    Args:
        order: (m,) rows, blocks of `size` being clusters.
        rest: the rows that fill no batch.
        size: rows a cluster.
        batch_size: rows a batch.
        rng: the source of the combination.

    Returns:
        (m + len(rest),) int64.
    """
    if size < batch_size:
        order = rng.permutation(order.reshape(-1, size)).ravel()
    return np.concatenate([order, rest]).astype(np.int64)


def check_least(least: int, **options: float) -> None:
    """Returns nothing, if every option is at least so much.

    Args:
        least: the smallest value.
        options: name and value.

    Raises:
        ValueError: an option is below it.
    """
    for name, value in options.items():
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}.")
