"""Embeddings of queries and documents in, how high the wanted documents rank out.

The rank of a document is 1 + those that are strictly closer + half of those that tie with it, and recall is the
average over the orders of ties: a model that maps all texts to one point scores as chance does, and not perfectly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sentence_transformers import SentenceTransformer

from gcbs_st.evaluation.evaluator import encode_distinct


def compare_with_gold(
    queries: np.ndarray, documents: np.ndarray, gold: np.ndarray, *, chunk: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many documents are closer to each query than its gold one is, and how many others are as close.

    Cost: O(q n d) time, O(chunk n) memory.

    Args:
        queries: (q, d) unit rows.
        documents: (n, d) unit rows; equal ones are ties.
        gold: (q,) the document that each query looks for, in 0..n-1.
        chunk: Queries compared at a time.

    Returns:
        (q,) closer ones, in 0..n-1, and (q,) ties, the gold one itself not counted.

    Raises:
        ValueError: If chunk is below 1, or an embedding is NaN or infinite.
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
    """Return MRR x 100 of what `compare_with_gold` gives; a tie counts as half a document that is closer."""
    return 100 * float((1 / (1 + closer + tied / 2)).mean())


def recall_at(k: int, closer: np.ndarray, tied: np.ndarray) -> float:
    """Return how many of 100 gold documents are among the k closest, on average over the orders of ties.

    Args:
        k: at least 1.
        closer: (q,) of `compare_with_gold`.
        tied: (q,) likewise.

    Returns:
        In [0, 100].
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
    """Return MRR x 100 of finding positive i from anchor i among all n positives, by cosine.

    The rank of a positive is 1 + the number of strictly closer rows + half the number of other rows tied with it:
    what a random order of the ties gives on average, so a model that maps all texts to one point scores
    100 / (1 + (n - 1) / 2) and not 100.

    Cost: O(n^2 d) time, O(chunk n) memory.

    Args:
        model: The model to score.
        anchors: n texts.
        positives: n texts; repeated texts are ties.
        batch_size: Texts a forward pass.
        chunk: Anchors compared at a time.

    Returns:
        Mean reciprocal rank x 100, in (0, 100].

    Raises:
        ValueError: If the texts are none or not paired, chunk is below 1, or an embedding is NaN or infinite.
    """
    if len(anchors) != len(positives) or not len(anchors):
        raise ValueError(f"MRR: got {len(anchors)} anchors and {len(positives)} positives, expected as many, not none")
    (anchor_rows, positive_rows), embeddings = encode_distinct(model, [anchors, positives], batch_size)
    closer, tied = compare_with_gold(
        embeddings[anchor_rows], embeddings[positive_rows], np.arange(len(anchors)), chunk=chunk
    )
    return mean_reciprocal_rank(closer, tied)
