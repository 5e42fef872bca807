"""How high the wanted documents rank: 1 + those that are strictly closer + half of those that tie with it.

Recall is the average over the orders of ties. So a model that maps all texts to one point scores as chance does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sentence_transformers import SentenceTransformer

from gcbs_st.evaluation.evaluator import encode_distinct


def compare_with_gold(
    queries: np.ndarray, documents: np.ndarray, gold: np.ndarray, *, chunk: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (q,) numbers of documents closer to each query than its gold one, and (q,) of others that tie with it.

    Queries and documents are (q, d) and (n, d) unit rows, and `gold` (q,) the row of the document that each query
    looks for. `chunk` queries are compared at a time: O(q n d) time, O(chunk n) memory. Raises a ValueError if an
    embedding is NaN or infinite.
    """
    if chunk < 1:
        raise ValueError(f"MRR: got chunk {chunk}, expected at least 1 row")
    finite = np.concatenate([np.isfinite(rows).all(axis=1) for rows in (queries, documents)])
    if not finite.all():
        raise ValueError(
            f"MRR: {np.count_nonzero(~finite)} of {len(finite)} embeddings are NaN or infinite, expected finite "
            "numbers: the model has diverged or its weights were not loaded"
        )
    # Equal rows become one column with a count: as columns of their own they would differ in the last bits, because
    # matrix products round by position, and would no longer be ties.
    columns, column_of, counts = np.unique(documents, axis=0, return_inverse=True, return_counts=True)
    own_columns = column_of.reshape(-1)[gold]  # NumPy 2.0 returns (n, 1) here
    closer, tied = [], []
    for start in range(0, len(queries), chunk):
        cosines = queries[start : start + chunk] @ columns.T
        own = np.take_along_axis(cosines, own_columns[start : start + chunk, None], axis=1)
        closer.append((cosines > own) @ counts)
        tied.append((cosines == own) @ counts - 1)
    return np.concatenate(closer), np.concatenate(tied)


def mean_reciprocal_rank(closer: np.ndarray, tied: np.ndarray) -> float:
    """Returns MRR x 100 from the counts of `compare_with_gold`; a tie counts as half a closer document."""
    return 100 * float((1 / (1 + closer + tied / 2)).mean())


def recall_at(k: int, closer: np.ndarray, tied: np.ndarray) -> float:
    """Returns the percentage of gold documents among the k closest, on average over the orders of ties.

    The counts are those of `compare_with_gold`.
    """
    return 100 * float(np.clip((k - closer) / (tied + 1), 0, 1).mean())


def heldout_mrr(
    model: SentenceTransformer,
    anchors: Sequence[str],
    positives: Sequence[str],
    *,
    batch_size: int = 128,
    chunk: int = 512,
) -> float:
    """Returns MRR x 100, in (0, 100], of finding positive i from anchor i among all n positives, by cosine.

    Repeated texts are ties. Cost: O(n^2 d) time, O(chunk n) memory. Raises a ValueError if the texts are none or not
    paired, or an embedding is NaN or infinite.
    """
    if len(anchors) != len(positives) or not len(anchors):
        raise ValueError(f"MRR: got {len(anchors)} anchors and {len(positives)} positives, expected as many, not none")
    (anchor_rows, positive_rows), embeddings = encode_distinct(model, [anchors, positives], batch_size)
    gold = np.arange(len(anchors))
    return mean_reciprocal_rank(
        *compare_with_gold(embeddings[anchor_rows], embeddings[positive_rows], gold, chunk=chunk)
    )
