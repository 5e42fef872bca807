"""Recursive balanced 2-means on the embeddings alone, no neighbour graph: the planner for a million rows.

Dahiya et al., "NGAME: Negative Mining-aware Mini-batching for Extreme Classification", arXiv 2207.04452.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gcbs_st.planners.algorithms.clusters import cluster_size_of, draw_rest, finish_order
from gcbs_st.planners.algorithms.trees import DIMS, grow_trees, project_pairs
from gcbs_st.planners.base import BasePlanner, check_least

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BisectPlanner(BasePlanner):
    """Recursive balanced 2-means, down to one cluster per leaf.

    A node is cut at a multiple of the leaf's rows by the bisector of two means, moved so that each side has its
    share of the rows. Neighbouring leaves come from one parent.

    Cost: O(n d 128 + n 128 log(n / B) trees) time, O(128 n) memory beside the embeddings, which may be half
    precision or a memory map.

    NGAME names no number of axes, sweeps or trees. Our choices: a row's vector is anchor + positive, on its
    main 128 axes; large nodes find their means on a sample; of several trees the one with the tightest
    leaves (largest mean squared norm of their centroids) is taken; n mod B rows drawn at random fill no batch.

    Attributes:
        trees: grown, of which the tightest is taken.
        clusters_per_batch: random clusters of B / clusters_per_batch rows that make a batch; 1 is hardest, B is a
            random plan.
        threads: at work at once on the CPU, 0 for one per core. The order does not depend on it.
        device: as torch names it, such as "cuda", that the trees are grown on; "cpu" for numba on the CPU. None is what
            the trainer says, which names the accelerator that it trains on, and the CPU elsewhere. The order depends on
            the kind of device: a plan of a GPU is as tight as one of the CPU, and another one.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(100, 8))
        >>> order = BisectPlanner(trees=1).plan(rows, rows, 10, np.random.default_rng(0))
        >>> sorted(order.tolist()) == list(range(100))
        True
    """

    plans_on_products: ClassVar[bool] = False
    plans_on_axes: ClassVar[bool] = True

    trees: int = 4
    clusters_per_batch: int = 1
    threads: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        """Raises a ValueError for an option out of its range."""
        check_least(1, trees=self.trees, clusters_per_batch=self.clusters_per_batch)
        check_least(0, threads=self.threads)
        if self.device is not None and not isinstance(self.device, str):
            raise ValueError(f'device: got {self.device!r}, expected a name such as "cuda:0" or "cpu", or None.')

    def order_rows(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns the order of the rows; `rng` draws the starts of the means, the remainder and the clusters' order."""
        size = cluster_size_of(batch_size, self.clusters_per_batch)
        rows, rest = draw_rest(len(anchors), batch_size, rng)
        if len(rows) > size > 1:
            rows = rows[self._order_leaves(anchors, positives, rows, size, rng)]
        return finish_order(rows, rest, size, batch_size, rng)

    def _order_leaves(
        self, anchors: np.ndarray, positives: np.ndarray, rows: np.ndarray, size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The (m,) places in `rows` of the leaves' rows, leaf by leaf."""
        if (device := torch_device(self.device)) is not None:
            # Here, because planners are imported where nothing is trained, and torch takes seconds.
            import torch

            from gcbs_st.planners.algorithms import torch_trees

            before = rng.bit_generator.state
            try:
                points = torch_trees.project_pairs(anchors, positives, rows, rng, device)
                return torch_trees.grow_trees(points, size, rng, trees=self.trees)
            except torch.OutOfMemoryError:
                # A run of days should not end for want of memory that is needed for a second.
                logger.warning(
                    "bisect: %s has no memory left for %d rows, about %.1f GB, so this plan is made on the CPU; it is as "
                    "tight, and another one. With planner_options={'device': 'cpu'} all plans are.",
                    self.device,
                    len(rows),
                    (self.bytes_needed(len(rows), anchors.shape[1]) + 2**28) / 1e9,
                )
                rng.bit_generator.state = before
        on_axes = project_pairs(anchors, positives, rows, rng, threads=self.threads)
        return grow_trees(on_axes, size, rng, trees=self.trees, threads=self.threads)

    def bytes_needed(self, row_count: int, dimensions: int) -> int:
        """Returns about how many bytes a plan takes beside the embeddings: points in float32 and three orders."""
        return row_count * (4 * min(dimensions, DIMS) + 48)


def torch_device(device: str | None) -> str | None:
    """Returns the device that torch grows trees on, None where numba does: on a CPU it is several times faster.

    >>> torch_device("cuda:1"), torch_device("cpu"), torch_device(None)
    ('cuda:1', None, None)
    """
    return None if device is None or device.partition(":")[0] == "cpu" else device
