"""Global Contrastive Batch Sampling: bandwidth minimisation of the thresholded similarity matrix.

Sachidananda, Yang and Zhu, "Global Selection of Contrastive Batches via Optimization on Sample
Permutations", ICML 2023, arXiv 2210.12874, appendix pseudocode.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from tqdm.auto import tqdm

from gcbs_st.planners.base import BasePlanner, check_least, check_share

logger = logging.getLogger(__name__)

# Up to this many rows the quantile is taken over all n^2 products, as in the paper.
EXACT_ROWS = 4096
# Anchors that it is estimated on above that, and anchors multiplied at a time.
_SAMPLE_ROWS, _CHUNK_ROWS = 256, 2048
# Past this the kept entries alone need over 6 GB.
_MANY_ENTRIES = 500_000_000


@dataclass(frozen=True, kw_only=True)
class GCBSPlanner(BasePlanner):
    """The paper's planner.

    One threshold t, the `quantile` of all anchor-positive products; the products above t as a sparse
    0/1 matrix A; the reverse Cuthill-McKee order of A + A^T; consecutive blocks of B rows are batches.

    Cost: n^2 d multiplications, O(2048 n) memory for the products and 5 bytes per kept entry, of
    which there are (1 - quantile) n^2. At a fixed quantile that grows with n^2: set `neighbors` to
    keep it at n * neighbors.

    Reversing an order changes no block but for the remainder, so SciPy's reversed order serves. The
    paper does not say whether equal products are kept; here only those strictly above t are.

    Attributes:
        quantile: in (0, 1), the share of products below the threshold; the paper's is 0.999.
        neighbors: if given, the quantile is 1 - neighbors / n, so that memory is O(n * neighbors).
        exact: take the quantile over all n^2 products however many there are. Otherwise it is estimated on 256 anchors
            against all positives above 4,096 rows.
        show_progress: show a progress bar over the chunks.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(100, 8))
        >>> order = GCBSPlanner(quantile=0.95).plan(rows, rows, 10, np.random.default_rng(0))
        >>> sorted(order.tolist()) == list(range(100))
        True
    """

    quantile: float = 0.999
    neighbors: int | None = None
    exact: bool = False
    show_progress: bool = False

    def __post_init__(self) -> None:
        """Raises a ValueError for an option out of its range."""
        check_share(quantile=self.quantile)
        check_least(1, neighbors=self.neighbors)

    def order_rows(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns the order, which follows from the embeddings alone.

        The rows on which the quantile is estimated come from a generator of their own, and not from `rng`.
        """
        n = len(anchors)
        if n <= 2:
            return np.arange(n)
        positives = positives.astype(np.float32, copy=False)
        matrix = self._thresholded(anchors, positives)
        return reverse_cuthill_mckee(matrix, symmetric_mode=False).astype(np.int64)

    def _thresholded(self, anchors: np.ndarray, positives: np.ndarray) -> csr_array:
        n = len(anchors)
        quantile = self.quantile if self.neighbors is None else max(1 - self.neighbors / n, 0.5)
        if (1 - quantile) * n * n > _MANY_ENTRIES:
            logger.warning(
                "GCBS at quantile %g keeps about %.1e of the products of %d rows; set neighbors (for example 100) "
                "to keep memory proportional to the rows.",
                quantile,
                (1 - quantile) * n * n,
                n,
            )
        rows = np.arange(n) if n <= EXACT_ROWS else np.random.default_rng(0).choice(n, _SAMPLE_ROWS, replace=False)
        products = anchors[rows].astype(np.float32, copy=False) @ positives.T
        if self.exact and n > EXACT_ROWS:
            return self._above_exact_quantile(anchors, positives, products, quantile)
        threshold = np.quantile(products, quantile)
        return _matrix([columns for columns, _ in self._above(anchors, positives, threshold)], n)

    def _above(
        self, anchors: np.ndarray, positives: np.ndarray, threshold: float
    ) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], np.ndarray]]:
        """Yields for each chunk of anchors ((entries per row, their columns), their products)."""
        starts = range(0, len(anchors), _CHUNK_ROWS)
        for start in tqdm(starts, desc="planning", unit="chunk", leave=False, disable=not self.show_progress):
            products = anchors[start : start + _CHUNK_ROWS].astype(np.float32, copy=False) @ positives.T
            above = products > threshold
            flat = np.flatnonzero(above)
            yield (above.sum(axis=1), (flat % len(positives)).astype(np.int32)), products.ravel()[flat]

    def _above_exact_quantile(
        self, anchors: np.ndarray, positives: np.ndarray, sample: np.ndarray, quantile: float
    ) -> csr_array:
        """One pass keeps all above a threshold that is surely too low, and the exact one is found among those."""
        n = len(anchors)
        # Index, from below, of the lower of the two order statistics between which the quantile lies. An
        # entry is above the interpolated quantile exactly if it is above this one.
        rank = int(np.floor(quantile * (n * n - 1)))
        kept_share = 1 - quantile
        while True:
            kept_share = min(1.0, 1.5 * kept_share)
            floor = -np.inf if kept_share == 1 else np.quantile(sample, 1 - kept_share)
            counts, columns, products = [], [], []
            for (count, column), product in self._above(anchors, positives, floor):
                counts.append(count)
                columns.append(column)
                products.append(product)
            values = np.concatenate(products)
            if len(values) >= n * n - rank:
                break
        index = rank - (n * n - len(values))
        keep = values > np.partition(values, index)[index]
        bounds = np.cumsum([0, *np.concatenate(counts)])
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        counts_kept = np.diff(kept_before[bounds])
        return _matrix([(counts_kept, np.concatenate(columns)[keep])], n)


def _matrix(chunks: list[tuple[np.ndarray, np.ndarray]], n: int) -> csr_array:
    """The (n, n) 0/1 matrix from (entries per row, their columns) of consecutive rows."""
    starts = np.concatenate([[0], np.cumsum(np.concatenate([counts for counts, _ in chunks]))])
    columns = np.concatenate([columns for _, columns in chunks])
    index_type = np.int32 if len(columns) < 2**31 else np.int64
    return csr_array((np.ones(len(columns), dtype=np.int8), columns, starts.astype(index_type)), shape=(n, n))
