"""Global Contrastive Batch Sampling: bandwidth minimisation of the thresholded similarity matrix.

Sachidananda, Yang and Zhu, "Global Selection of Contrastive Batches via Optimization on Sample
Permutations", ICML 2023, arXiv 2210.12874, appendix pseudocode.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from tqdm.auto import tqdm

from gcbs_st.planners.base import check_pairs

logger = logging.getLogger(__name__)

# Up to this many rows the quantile is taken over all n^2 products, as in the paper.
EXACT_ROWS = 4096
# Past this the kept entries alone need over 6 GB.
_MANY_ENTRIES = 500_000_000


class GCBSPlanner:
    """The paper's planner.

    One threshold t, the `quantile` of all anchor-positive products; the products above t as a sparse
    0/1 matrix A; the reverse Cuthill-McKee order of A + A^T; consecutive blocks of B rows are batches.

    Cost: n^2 d multiplications, O(chunk_rows n) memory for the products and 5 bytes a kept entry, of
    which there are (1 - quantile) n^2. At a fixed quantile that grows with n^2: set `neighbors` to
    keep it at n * neighbors.

    Reversing an order changes no block but for the remainder, so SciPy's reversed order serves. The
    paper does not say whether equal products are kept; here only those strictly above t are.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(100, 8))
        >>> order = GCBSPlanner(quantile=0.95).plan(rows, rows, 10, np.random.default_rng(0))
        >>> sorted(order.tolist()) == list(range(100))
        True
    """

    def __init__(
        self,
        *,
        quantile: float = 0.999,
        neighbors: int | None = None,
        exact: bool = False,
        sample_rows: int = 256,
        chunk_rows: int = 2048,
        show_progress: bool = False,
    ) -> None:
        """Takes the paper's option and how its cost is bounded.

        Args:
            quantile: in (0, 1), the share of products below the threshold; the paper's is 0.999.
            neighbors: if given, the quantile is 1 - neighbors / n, so that memory is O(n * neighbors).
            exact: take the quantile over all n^2 products however many there are. Otherwise it is
                estimated on `sample_rows` anchors against all positives above 4,096 rows.
            sample_rows: anchors on which the quantile is estimated, at most 4,096.
            chunk_rows: anchors multiplied at a time.
            show_progress: show a progress bar over the chunks.

        Raises:
            ValueError: an option out of its range.
        """
        if not 0 < quantile < 1:
            raise ValueError(f"quantile: got {quantile}, expected a number between 0 and 1 (the paper's is 0.999).")
        if neighbors is not None and neighbors < 1:
            raise ValueError(f"neighbors: got {neighbors}, expected at least 1, or None to use the quantile.")
        if not 1 <= sample_rows <= EXACT_ROWS:
            raise ValueError(f"sample_rows: got {sample_rows}, expected 1 to {EXACT_ROWS}.")
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows: got {chunk_rows}, expected at least 1.")
        self.quantile = quantile
        self.neighbors = neighbors
        self.exact = exact
        self.sample_rows = sample_rows
        self.chunk_rows = chunk_rows
        self.show_progress = show_progress

    def plan(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns (n,) int64, the order of the rows.

        Args:
            anchors: (n, d) floats, unit rows.
            positives: (n, d) floats, unit rows; row i is the positive of anchor i.
            batch_size: rows a batch; the order itself does not depend on it.
            rng: not used. The paper's plan follows from the embeddings alone, so the rows on which the
                quantile is estimated come from a generator of their own.

        Returns:
            The order of the rows.

        Raises:
            ValueError: input that no planner takes, see `gcbs_st.planners.base.check_pairs`.
        """
        anchors, positives = check_pairs(anchors, positives, batch_size)
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
        rows = np.arange(n) if n <= EXACT_ROWS else np.random.default_rng(0).choice(n, self.sample_rows, replace=False)
        products = anchors[rows].astype(np.float32, copy=False) @ positives.T
        if self.exact and n > EXACT_ROWS:
            return self._above_exact_quantile(anchors, positives, products, quantile)
        threshold = np.quantile(products, quantile)
        return _matrix([columns for columns, _ in self._above(anchors, positives, threshold)], n)

    def _above(
        self, anchors: np.ndarray, positives: np.ndarray, threshold: float
    ) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], np.ndarray]]:
        """Yields for each chunk of anchors ((entries a row, their columns), their products)."""
        starts = range(0, len(anchors), self.chunk_rows)
        for start in tqdm(starts, desc="planning", unit="chunk", leave=False, disable=not self.show_progress):
            products = anchors[start : start + self.chunk_rows].astype(np.float32, copy=False) @ positives.T
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
    """The (n, n) 0/1 matrix from (entries a row, their columns) of consecutive rows."""
    starts = np.concatenate([[0], np.cumsum(np.concatenate([counts for counts, _ in chunks]))])
    columns = np.concatenate([columns for _, columns in chunks])
    index_type = np.int32 if len(columns) < 2**31 else np.int64
    return csr_array((np.ones(len(columns), dtype=np.int8), columns, starts.astype(index_type)), shape=(n, n))
