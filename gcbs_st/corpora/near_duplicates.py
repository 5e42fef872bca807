"""Texts in, those that are no near-duplicate of an earlier one out: by the share of words that two texts have in common.

Exact: every pair of texts above the threshold is found, not only most of them as with MinHash. It can be fast since
two sets with a high Jaccard similarity share one of their few rarest words (prefix filter: Chaudhuri, Ganti, Kaushik,
ICDE 2006), so only texts that do are compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse

WORD = re.compile(r"\w+")
_BLOCK = 20_000  # rows of the product of candidates that are in memory at a time


def near_duplicate_pairs(texts: Sequence[str], threshold: float) -> np.ndarray:
    """Return the pairs of texts whose sets of words have a Jaccard similarity of at least the threshold.

    Words are runs of letters, digits and underscores, and case does not matter; a text without any is like no other.
    Cost: the sum, over words, of the squares of how many texts have it among their rarest (1 - threshold).

    Args:
        texts: n texts.
        threshold: of words in both to words in either, in (0, 1].

    Returns:
        (m, 2) int64, i < j in each row, sorted.

    Raises:
        ValueError: the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"near-duplicates: got threshold {threshold}, expected above 0 and at most 1")
    words = _word_sets(texts)
    sizes = np.diff(words.indptr)
    prefixes = _rarest(words, sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1)
    columns = prefixes.T.tocsr()
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(texts), _BLOCK):
        shared = (prefixes[start : start + _BLOCK] @ columns).tocoo()
        rows, others = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        # Sets of too different sizes cannot be alike.
        alike = (rows < others) & (
            np.minimum(sizes[rows], sizes[others]) >= threshold * np.maximum(sizes[rows], sizes[others]) - 1e-9
        )
        rows, others = rows[alike], others[alike]
        both = np.concatenate(
            [np.empty(0)]
            + [
                np.asarray(words[rows[at : at + _BLOCK]].multiply(words[others[at : at + _BLOCK]]).sum(axis=1)).ravel()
                for at in range(0, len(rows), _BLOCK)
            ]
        )
        near = both >= threshold * (sizes[rows] + sizes[others] - both) - 1e-9
        found.append(np.stack([rows[near], others[near]], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def without_later(rows: int, pairs: np.ndarray) -> np.ndarray:
    """Return which rows stay if each row goes that is paired with an earlier one that stays.

    Args:
        rows: n.
        pairs: (m, 2) rows i < j that are alike, in any order.

    Returns:
        (n,) bool.
    """
    stays = np.ones(rows, dtype=bool)
    for earlier, later in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
        if stays[earlier]:
            stays[later] = False
    return stays


def _word_sets(texts: Sequence[str]) -> sparse.csr_array:
    """(n, v) ones where a text has a word; words in the order of how many texts have them, rare ones first."""
    number_of: dict[str, int] = {}
    columns: list[int] = []
    ends = [0]
    for text in texts:
        distinct = dict.fromkeys(WORD.findall(text.lower()))
        columns += [number_of.setdefault(word, len(number_of)) for word in distinct]
        ends.append(len(columns))
    ids = np.array(columns, dtype=np.int64)
    by_rarity = np.argsort(np.bincount(ids, minlength=len(number_of)), kind="stable")
    rank = np.empty_like(by_rarity)
    rank[by_rarity] = np.arange(len(by_rarity))
    ones = np.ones(len(ids), dtype=np.int32)
    sets = sparse.csr_array((ones, rank[ids], np.array(ends)), shape=(len(texts), len(number_of)))
    sets.sort_indices()
    return sets


def _rarest(words: sparse.csr_array, counts: np.ndarray) -> sparse.csr_array:
    """The matrix with only the first so many entries of each row."""
    place = np.arange(words.nnz) - np.repeat(words.indptr[:-1], np.diff(words.indptr))
    kept = place < np.repeat(counts, np.diff(words.indptr))
    ends = np.concatenate([[0], np.cumsum(kept)])[words.indptr]
    return sparse.csr_array((words.data[kept], words.indices[kept], ends), shape=words.shape)
