"""Which rows must not share a batch: a dataset in, the values that several of its rows share out.

A value is a text or a group. In a batch every row's positive is a negative of all others, so a text that stands in two
of its rows is pushed away from itself. Two rows are kept apart if they share

- an anchor or a positive, or the anchor of one is the positive of the other;
- a text that is a negative of one and the anchor or positive of the other (a negative that both have is harmless);
- a group, such as the photo that two captions describe;
- a text that is listed as a right answer to the anchor of one and is the anchor or positive of the other.

`batch_sampler="no_duplicates"` is stricter, with sentence-transformers' meaning: no text stands twice in a batch, in
whichever column that does not hold labels.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset

from gcbs_st.batches.seating import Holdings, entries_of
from gcbs_st.batches.separation import find_clashes, separate_rows

_READ_ROWS = 10_000
_TEXT_TYPES = ("string", "large_string")


@dataclass(frozen=True)
class Clashes:
    """What could not be kept apart."""

    share: float  # of the rows that meet one in their batch that shares a value, in [0, 1]
    holders: int  # rows that share the value of which most rows do
    row: int  # id of one of these rows
    rows: int  # number of the rows that were to be kept apart
    batches: int  # that they fill


class SharedValues:
    """The values that two or more of `count` rows share, and the rows that hold them.

    `rows` and `values` are (e,) integers: a row may hold any number of values, and equal numbers are equal values.
    `strong` is (e,) bool, False for a value that is in the way of those rows alone that hold it strongly; None if all
    are strong.

        >>> values = SharedValues(np.array([0, 1, 2, 3]), np.array([7, 7, 8, 9]))
        >>> values.separate(np.array([0, 1, 2, 3]), 2).tolist()
        [0, 3, 2, 1]
    """

    def __init__(self, rows: np.ndarray, values: np.ndarray, strong: np.ndarray | None = None, count: int = 0) -> None:
        strong = np.ones(len(rows), bool) if strong is None else strong
        count = count or int(rows.max(initial=-1)) + 1
        names, numbers = np.unique(values, return_inverse=True)
        # Of a value that a row holds twice, as anchor and as positive, the strong one counts, once.
        order = np.lexsort((~strong, numbers, rows))
        rows, numbers, strong = rows[order], numbers.ravel()[order], strong[order]
        first = np.ones(len(rows), bool)
        first[1:] = (rows[1:] != rows[:-1]) | (numbers[1:] != numbers[:-1])
        rows, numbers, strong = rows[first], numbers[first], strong[first]
        holders, strongly = np.bincount(numbers), np.bincount(numbers, weights=strong)
        kept = ((holders > 1) & (strongly > 0))[numbers]
        rows, numbers, strong = rows[kept], numbers[kept], strong[kept]
        shared, numbers = np.unique(numbers, return_inverse=True)
        self._names = names[shared]
        starts = np.searchsorted(rows, np.arange(count + 1))
        self.held = Holdings(starts, numbers.ravel().astype(np.int32), strong, int(numbers.max(initial=-1)) + 1)

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        columns: Sequence[str],
        *,
        strict: bool = False,
        groups: Sequence[Any] | None = None,
        positives: Sequence[Sequence[str]] | None = None,
    ) -> SharedValues:
        """Returns the shared values of a dataset's n rows, read through its transform and compared by a 64-bit hash.

        `columns` hold texts: the anchors, the positives, then those of negatives. If `strict` all columns count alike,
        and what is no text counts too, by its content. Rows of equal `groups`, (n,) values of any kind, share a value;
        None and NaN are no group. `positives`, (n,) lists, are texts that are right answers to a row's anchor: it is
        kept apart from rows of which one is the anchor or positive.
        """
        of_groups, hashes = hash_groups(() if groups is None else groups)
        held = [(of_groups, hashes, np.ones(len(of_groups), bool))]
        listing, hashes = hash_lists(() if positives is None else positives)
        held.append((listing, hashes, np.zeros(len(listing), bool)))
        for name, (rows, hashes) in hash_columns(dataset, columns, strict).items():
            held.append((rows, hashes, np.full(len(rows), strict or name in columns[:2])))
        rows, hashes, strong = (np.concatenate(arrays) for arrays in zip(*held, strict=True))
        return cls(rows, hashes, strong, len(dataset))

    def __bool__(self) -> bool:
        """Whether any rows share a value."""
        return len(self.held.values) > 0

    def count_repeats(self, columns: int) -> int:
        """Returns how many rows hold nothing but what an earlier row holds too, of at least `columns` values each.

        >>> SharedValues(np.array([0, 0, 1, 1, 2]), np.array([7, 8, 7, 8, 7])).count_repeats(2)
        1
        """
        starts = self.held.starts
        counts = np.diff(starts)
        found = 0
        for count in np.unique(counts[counts >= columns]):
            of_rows = starts[:-1][counts == count]
            held = np.sort(self.held.values[of_rows[:, None] + np.arange(count)], axis=1)
            found += len(held) - len(np.unique(held, axis=0))
        return found

    def draw(self, order: np.ndarray, batches: int, batch_size: int) -> np.ndarray:
        """Returns the first rows of an (n,) order that fill the batches, if possible no value twice in a batch."""
        places, entries = entries_of(self.held, order)
        strong = self.held.strong[entries]
        places, values = places[strong], self.held.values[entries][strong]
        # How many rows before a row, in this order, hold its value.
        by_value = np.argsort(values, kind="stable")
        before = np.arange(len(values)) - np.searchsorted(values[by_value], values[by_value])
        late = np.zeros(len(order), bool)
        late[places[by_value[before >= batches]]] = True
        return np.concatenate([order[~late], order[late]])[: batches * batch_size]

    def separate_for(self, order: np.ndarray, contrast_size: int, batch_size: int) -> np.ndarray:
        """Returns the order with rows that share a value apart among all that they are contrasted with, if possible.

        `contrast_size` rows are contrasted with one another: a batch, or the batches that all ranks draw in one step,
        the last of which may be cut off by the end of the order. Where a step of all ranks has no place for a row, at
        least its own batch of `batch_size` should.
        """
        whole = len(order) // contrast_size * contrast_size
        order = np.concatenate([self.separate(order[:whole], contrast_size), order[whole:]])
        return self.separate(order, batch_size) if contrast_size > batch_size else order

    def separate(self, order: np.ndarray, batch_size: int, seed: int = 0) -> np.ndarray:
        """Returns the (m,) order with rows exchanged between near batches until no batch holds a value twice.

        Where that cannot be, it is done as far as possible; `clashes` says how far. m is a multiple of `batch_size`;
        see `gcbs_st.batches.separation.separate_rows` for the cost.
        """
        return separate_rows(self.held, order, batch_size, seed) if self else order.copy()

    def replace_clashing(self, order: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Returns batches whose rows may recur, with rows that meet a value again replaced by random others.

        The (m,) order, m a multiple of `batch_size`, is distinct within a batch, and stays so. A row that no other
        fits in the place of stays.
        """
        batches = order.reshape(-1, batch_size).copy()
        rows = len(self.held.starts) - 1
        for batch in np.unique(np.flatnonzero(find_clashes(self.held, order, batch_size)) // batch_size):
            members, candidates = batches[batch], iter(rng.permutation(rows)[: 20 * batch_size].tolist())
            kept: list[int] = []
            for row in members.tolist():
                others = set(kept) | set(members[len(kept) :].tolist())
                while row is not None and not self._fits(row, kept):
                    row = next((one for one in candidates if one not in others), None)
                kept.append(int(members[len(kept)]) if row is None else row)
            batches[batch] = kept
        return batches.ravel()

    def _fits(self, row: int, others: list[int]) -> bool:
        together = np.array([*others, row])
        return not find_clashes(self.held, together, len(together))[-1]

    def clashes(self, order: np.ndarray, batch_size: int) -> Clashes | None:
        """Returns what meets in the batches of an order and should not; None if nothing does."""
        found = find_clashes(self.held, order, batch_size) if self else np.zeros(len(order), bool)
        if not found.any():
            return None
        places, entries = entries_of(self.held, order)
        counts = np.bincount(self.held.values[entries])
        # Of the rows that meet another, the one with the most widespread value.
        met = np.flatnonzero(found[places])
        worst = met[np.argmax(counts[self.held.values[entries[met]]])]
        holders, row = int(counts[self.held.values[entries[worst]]]), int(order[places[worst]])
        return Clashes(float(found.mean()), holders, row, len(order), len(order) // batch_size)

    def name_widest(self, row: int, texts: Sequence[Any], group: Any = None) -> tuple[str, Any]:
        """Returns what most other rows share with a row, a text or a group: "text" or "group", and which."""
        held = self.held.values[self.held.starts[row] : self.held.starts[row + 1]]
        if len(held):
            widest = self._names[held[np.argmax(np.bincount(self.held.values)[held])]]
            for text in (one for value in texts for one in _texts_of(value, strict=True)):
                if _hash(text) == widest:
                    return "text", text
            if group is not None and _hash(str(group), seed=1) == widest:
                return "group", group
        return "text", texts[0] if texts else ""


def _is_missing(group: Any) -> bool:
    return group is None or (isinstance(group, float) and group != group)


def _hash(text: str, seed: int = 0) -> int:
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass"), seed=seed)


def hash_groups(groups: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of (n,) rows are in a group, and (e,) its hashes; of another seed than texts, so that 7 is not "7"."""
    named = [(row, group) for row, group in enumerate(groups) if not _is_missing(group)]
    rows = np.array([row for row, _ in named], np.int64)
    return rows, np.array([_hash(str(group), seed=1) for _, group in named], np.uint64)


def hash_lists(lists: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of (n,) rows each listed text belongs to, and (e,) its hashes."""
    rows = np.repeat(np.arange(len(lists)), [len(texts) for texts in lists])
    return rows, np.array([_hash(text) for texts in lists for text in texts], np.uint64)


def hash_columns(
    dataset: Dataset, columns: Sequence[str], strict: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns, by column, which rows hold something that can be compared, and (e,) its hashes."""
    if all(name in dataset.column_names for name in columns) and dataset.format["type"] != "custom":
        if not strict:  # straight from the files: an image beside the texts is not decoded
            columns = [name for name in columns if _holds_text(dataset.features[name])]
        dataset = dataset.with_format(None).select_columns(list(columns))
    found = {name: [(np.zeros(0, np.int64), np.zeros(0, np.uint64))] for name in columns}
    for start in range(0, len(dataset), _READ_ROWS) if columns else ():
        block = dataset[start : start + _READ_ROWS]
        for name, pieces in found.items():
            texts = [_texts_of(value, strict) for value in block[name]]
            rows = np.repeat(np.arange(start, start + len(texts)), [len(one) for one in texts])
            pieces.append((rows, np.array([_hash(text) for one in texts for text in one], np.uint64)))
    return {
        name: (np.concatenate([rows for rows, _ in pieces]), np.concatenate([hashes for _, hashes in pieces]))
        for name, pieces in found.items()
    }


def _holds_text(kind: Any) -> bool:
    """Returns whether a column's type is texts, or lists of texts."""
    inner = kind[0] if isinstance(kind, list) else getattr(kind, "feature", kind)
    return getattr(inner, "dtype", None) in _TEXT_TYPES


def _texts_of(value: Any, strict: bool) -> tuple[str, ...]:
    """Returns what of a value is compared: a text, each text of a list; of anything else nothing, or its content."""
    if isinstance(value, str):
        return (value,)
    if strict:
        return (_content_of(value),)
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, (list, tuple)) else ()


def _content_of(value: Any) -> str:
    """Returns a text that no other value has: plain values as they print, as in the host; media by their bytes."""
    if isinstance(value, (int, float, bool, bytes, type(None), np.generic, list, tuple, dict)):
        return str(value)
    try:
        return xxhash.xxh3_128_hexdigest(pickle.dumps(value))
    except Exception:  # whatever pickling raises: what has no bytes matches nothing, as in the host
        return str(value)
