"""Finds near-duplicate texts by the share of words in common; all of them, not only most as with MinHash.

Fast since two sets with a high Jaccard similarity share one of their few rarest words (prefix filter: Chaudhuri,
Ganti, Kaushik, ICDE 2006), so only texts that do are compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse

WORD = re.compile(r"\w+")
_BLOCK = 20_000  # rows of the product of candidates that are in memory at a time


def near_duplicate_pairs(texts: Sequence[str], threshold: float) -> np.ndarray:
    """Returns the pairs of texts whose sets of words have a Jaccard similarity of at least the threshold, in (0, 1].

    They are sorted (m, 2) int64 with i < j. Words are runs of letters, digits and underscores, and case does not
    matter; a text without any is like no other. Cost: the sum, over words, of the squared number of texts that have
    the word among their rarest (1 - threshold).
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
        smaller, larger = np.minimum(sizes[rows], sizes[others]), np.maximum(sizes[rows], sizes[others])
        alike = (rows < others) & (smaller >= threshold * larger - 1e-9)
        rows, others = rows[alike], others[alike]
        both = [np.empty(0)]
        for at in range(0, len(rows), _BLOCK):
            common = words[rows[at : at + _BLOCK]].multiply(words[others[at : at + _BLOCK]])
            both.append(np.asarray(common.sum(axis=1)).ravel())
        shared_words = np.concatenate(both)
        near = shared_words >= threshold * (sizes[rows] + sizes[others] - shared_words) - 1e-9
        found.append(np.stack([rows[near], others[near]], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def without_later(row_count: int, pairs: np.ndarray) -> np.ndarray:
    """Returns (row_count,) bool: which rows stay if each row goes that is paired with an earlier one that stays."""
    stays = np.ones(row_count, dtype=bool)
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
    """The matrix with only the first `counts` entries of each row."""
    place = np.arange(words.nnz) - np.repeat(words.indptr[:-1], np.diff(words.indptr))
    kept = place < np.repeat(counts, np.diff(words.indptr))
    ends = np.concatenate([[0], np.cumsum(kept)])[words.indptr]
    return sparse.csr_array((words.data[kept], words.indices[kept], ends), shape=words.shape)
