"""Rows that share a value are kept out of one batch, with the host's meaning of sharing."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import batches_with_a_value_twice
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

from gcbs_st import duplicates
from gcbs_st.duplicates import SharedValues


@st.composite
def value_matrices(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """(n, c) integers of which many are equal, and a batch size that divides n."""
    batch_size, batches, columns = draw(st.integers(1, 6)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    n = batch_size * batches
    top = draw(st.integers(1, 4 * n))
    flat = draw(st.lists(st.integers(-1, top), min_size=n * columns, max_size=n * columns))
    return np.array(flat).reshape(n, columns), batch_size


def late_rows(values: np.ndarray, order: np.ndarray, batch_size: int) -> list[int]:
    """The rows that share a value with an earlier row of their batch: those that have to move."""
    return [
        int(row)
        for batch in order.reshape(-1, batch_size)
        for position, row in enumerate(batch)
        if any(set(values[row].tolist()) & set(values[other].tolist()) for other in batch[:position])
    ]


def conflicts(values: np.ndarray, first: int, second: int) -> bool:
    """Whether two rows may not share a batch: then the one batch of both cannot be had."""
    return SharedValues(values).separate(np.array([first, second]), 2) is None


@settings(deadline=None, max_examples=400)
@given(case=value_matrices(), seed=st.integers(0, 2**32 - 1))
def test_no_batch_holds_a_value_twice(case: tuple[np.ndarray, int], seed: int) -> None:
    """What comes out is the same rows, no batch with a value twice, and little has moved."""
    values, batch_size = case
    order = np.random.default_rng(seed).permutation(len(values))
    before = order.copy()
    found = SharedValues(values).separate(order, batch_size)
    assert before.tolist() == order.tolist()
    crowded = batches_with_a_value_twice(values, order, batch_size)
    if found is None:
        assert [] != crowded
        return
    assert sorted(order.tolist()) == sorted(found.tolist())
    assert order.dtype == found.dtype
    assert [] == batches_with_a_value_twice(values, found, batch_size)
    # Each row that has to move changes places with one other.
    assert (found != order).sum() <= 2 * len(late_rows(values, order, batch_size))
    if not crowded:
        assert order.tolist() == found.tolist()


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), columns=st.integers(1, 3))
def test_few_duplicates_are_always_separated(seed: int, columns: int) -> None:
    """Where values are held by few rows a place is always found, for a part of the rows as for all."""
    rng = np.random.default_rng(seed)
    values = rng.integers(60, size=(64, columns))
    values[values < 50] = np.arange((values < 50).sum()) + 100
    order = rng.permutation(64)[:48]
    found = SharedValues(values).separate(order, 4)
    assert found is not None
    assert sorted(order.tolist()) == sorted(found.tolist())
    assert [] == batches_with_a_value_twice(values, found, 4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1, 2], [1, 3]], True),
        ([[1, 2], [3, 2]], True),
        ([[1, 2], [3, 1]], True),
        ([[1, 2], [3, 4]], False),
        ([[1, 1], [2, 2]], False),
        ([[1, 1], [2, 1]], True),
        ([[1, 1], [1, 1]], True),
        ([[1], [1]], True),
        ([[], []], False),
    ],
)
def test_which_rows_conflict(values: list[list[int]], expected: bool) -> None:
    """Values compare within and across columns; a row that holds one twice is not in its own way."""
    assert expected == conflicts(np.array(values), 0, 1)


def test_value_in_both_columns_of_one_row_moves_nothing() -> None:
    """Unsupervised rows, both columns alike, stay where they are."""
    values = np.repeat(np.arange(12)[:, None], 2, axis=1)
    order = np.random.default_rng(0).permutation(12)
    assert order.tolist() == SharedValues(values).separate(order, 4).tolist()


def test_first_row_of_a_value_stays() -> None:
    """The later of two rows moves, also where the first one holds their value in both its columns."""
    values = np.array([[1, 1], [1, 2], [3, 4], [5, 6]])
    assert [0, 2, 1, 3] == SharedValues(values).separate(np.arange(4), 2).tolist()


def test_rows_without_shared_values_stay() -> None:
    """Only the row that has to move and the one it changes places with move, to the nearest batch."""
    values = np.arange(40)
    values[17] = values[16]
    found = SharedValues(values.reshape(40, 1)).separate(np.arange(40), 4)
    moved = np.flatnonzero(found != np.arange(40)).tolist()
    assert [17, 20] == moved
    assert [20, 17] == found[moved].tolist()


def test_nearest_batch_that_can_take_the_row() -> None:
    """Batches that hold the value themselves are passed over."""
    values = np.array([[0], [0], [0], [1], [0], [2], [3], [4]])
    found = SharedValues(values).separate(np.arange(8), 2)
    assert [0, 6, 2, 3, 4, 5, 1, 7] == found.tolist()


@pytest.mark.parametrize(
    ("values", "batch_size"),
    [
        ([[0], [0]], 2),
        ([[0], [0], [0], [1]], 2),
        ([[0], [0], [1], [2], [3], [4]], 6),
        ([[0, 1], [0, 2], [1, 2], [3, 4], [3, 5], [4, 5]], 3),
    ],
    ids=["all-alike", "more-than-batches", "one-batch", "cliques"],
)
def test_infeasible_gives_none(values: list[list[int]], batch_size: int) -> None:
    """Where no exchange can help the answer is None."""
    assert SharedValues(np.array(values)).separate(np.arange(len(values)), batch_size) is None


def test_no_rows() -> None:
    """An order of no rows has nothing to separate."""
    assert [] == SharedValues(np.array([[1], [1]])).separate(np.empty(0, dtype=np.int64), 4).tolist()


# ------------------------------------------------------------------ draw


@given(
    seed=st.integers(0, 2**32 - 1), batches=st.integers(1, 6), batch_size=st.integers(1, 5), extra=st.integers(0, 4)
)
def test_drawn_rows_can_fill_the_batches(seed: int, batches: int, batch_size: int, extra: int) -> None:
    """As many rows as wanted, in their order, no value in more rows than there are batches; or an error if none are."""
    n = batches * batch_size + extra
    rng = np.random.default_rng(seed)
    values = rng.integers(max(1, n // 2), size=(n, 1))
    order = rng.permutation(n)
    # With one column the rows that can be used are easily counted.
    usable = np.minimum(np.bincount(values.ravel()), batches).sum()
    if usable < batches * batch_size:
        with pytest.raises(ValueError, match="no_duplicates: one value stands in"):
            SharedValues(values).draw(order, batches, batch_size)
        return
    found = SharedValues(values).draw(order, batches, batch_size)
    assert batches * batch_size == len(set(found.tolist())) == len(found)
    assert np.bincount(values[found].ravel()).max() <= batches
    assert sorted(found.tolist(), key=order.tolist().index) == found.tolist()


def test_draw_takes_first_rows_where_it_can() -> None:
    """Without too frequent values the first rows of the order are drawn."""
    values = SharedValues(np.array([[0], [0], [1], [2], [3]]))
    assert [4, 1, 0, 3] == values.draw(np.array([4, 1, 0, 3, 2]), 2, 2).tolist()


def test_draw_leaves_out_what_is_too_frequent() -> None:
    """Of a value in more rows than batches the first rows are taken, and others make up for the rest."""
    values = SharedValues(np.array([[0, 9], [0, 8], [0, 7], [1, 6], [2, 5]]))
    assert [0, 1, 3, 4] == values.draw(np.arange(5), 2, 2).tolist()


def test_draw_says_what_is_in_the_way() -> None:
    """The message names how often the value stands, how many batches there are, and what to do."""
    values = SharedValues(np.array([[0], [0], [0], [0], [1], [2]]))
    with pytest.raises(
        ValueError,
        match=r"one value stands in 4 of 6 rows, but an epoch has only 3 full batches of 2.*De-duplicate.*lower",
    ):
        values.draw(np.arange(6), 3, 2)


# ------------------------------------------------------------------ from_dataset

ROWS: dict[str, list[Any]] = {
    "anchor": ["1", "a", "b", "A", "b ", "c", "None", "e", "f", "x", "[1, 2]", "g", "h", "é"],
    "positive": [2, 1, 3, 4, 5, 6, 7, 8, 3, 10, 11, 12, 1, 13],
    "negative": ["p", "q", "r", "a", "s", "b", "t", None, "u", "x", "v", "w", "y", "e\u0301"],
    "more": [[i, 2] if i < 3 else [0, i] for i in range(14)],
    "label": [0] * 14,
}


def test_sharing_is_what_the_host_means() -> None:
    """Two rows conflict if and only if the host's NO_DUPLICATES sampler cannot put both in one batch."""
    dataset = Dataset.from_dict(ROWS)
    shared = SharedValues.from_dataset(dataset, ["label"])
    found, expected = set(), set()
    for i in range(len(dataset)):
        for j in range(i):
            if shared.separate(np.array([i, j]), 2) is None:
                found.add((i, j))
            theirs = NoDuplicatesBatchSampler(dataset.select([i, j]), 2, True, valid_label_columns=["label"])
            if not list(theirs):
                expected.add((i, j))
    assert 5 < len(expected) < 20
    assert expected == found


def test_both_samplers_satisfy_one_predicate() -> None:
    """Over the same rows the host's batches and ours hold no string twice; ours are all full."""
    rng = np.random.default_rng(0)
    texts = [f"t{i}" for i in rng.integers(60, size=100)]
    dataset = Dataset.from_dict({"a": texts[:50], "b": texts[50:], "score": [0.5] * 50})
    values = np.array([[int(text[1:]) for text in pair] for pair in zip(texts[:50], texts[50:], strict=True)])
    theirs = list(NoDuplicatesBatchSampler(dataset, 5, True, valid_label_columns=["score"]))
    ours = SharedValues.from_dataset(dataset, ["score"]).separate(np.arange(50), 5)
    assert [] != batches_with_a_value_twice(values, np.arange(50), 5)
    for batches in (np.array(theirs), ours.reshape(10, 5)):
        assert [] == batches_with_a_value_twice(values, batches.ravel(), 5)
    assert list(range(50)) == sorted(ours.tolist())


def test_dataset_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks make no difference, a shorter last one included."""
    dataset = Dataset.from_dict(ROWS)
    expected = SharedValues.from_dataset(dataset, ["label"])._of_row
    monkeypatch.setattr(duplicates, "_READ_ROWS", 4)
    found = SharedValues.from_dataset(dataset, ["label"])._of_row
    assert expected == found
    assert 4 < len(expected)


def test_excluded_columns_do_not_count() -> None:
    """Labels, and the column in which the host notes the dataset's name, may be the same in all rows."""
    dataset = Dataset.from_dict({"a": ["x", "y"], "label": [1, 1], "dataset_name": ["d", "d"]})
    assert [0, 1] == SharedValues.from_dataset(dataset, ["label"]).separate(np.arange(2), 2).tolist()
    assert SharedValues.from_dataset(dataset).separate(np.arange(2), 2) is None


def test_transform_applies() -> None:
    """Values are those that training sees, after the dataset's transform."""
    dataset = Dataset.from_dict({"a": ["x", "X"], "b": ["1", "2"]})
    assert SharedValues.from_dataset(dataset).separate(np.arange(2), 2) is not None
    dataset.set_transform(lambda rows: {**rows, "a": [text.lower() for text in rows["a"]]})
    assert SharedValues.from_dataset(dataset).separate(np.arange(2), 2) is None


def test_large_set_is_fast() -> None:
    """20,000 rows of which 5 % hold a repeated value take well under two seconds, even where plans put them together."""
    rng = np.random.default_rng(0)
    values = np.arange(40_000).reshape(20_000, 2)
    repeated = rng.choice(20_000, 1000, replace=False)
    values[repeated, 0] = rng.choice(repeated, 1000) * 2
    order = np.argsort(values[:, 0], kind="stable")
    began = time.perf_counter()
    found = SharedValues(values).separate(order, 50)
    seconds = time.perf_counter() - began
    assert found is not None
    assert seconds < 2


def test_groups_are_values_of_their_own():
    """Rows of a group are kept apart, a group is not the text that looks like it, and texts may be left out."""
    dataset = Dataset.from_dict({"anchor": ["7", "a", "b", "c"], "positive": ["d", "e", "f", "a"]})
    groups = [5, 7, 5, 7]
    grouped = SharedValues.from_dataset(dataset, texts=False, groups=groups)
    np.testing.assert_array_equal([0, 1, 2, 3], grouped.separate(np.array([0, 1, 2, 3]), 2))
    assert [{5, 7}, {5, 7}] == [
        {groups[row] for row in batch} for batch in grouped.separate(np.array([0, 2, 1, 3]), 2).reshape(2, 2)
    ]
    both = SharedValues.from_dataset(dataset, groups=groups)
    assert {0, 2, 1, 3} == set(both.separate(np.array([0, 2, 1, 3]), 2).tolist())
    apart = both.separate(np.array([1, 3, 0, 2]), 2).reshape(2, 2).tolist()
    assert [{5, 7}, {5, 7}] == [{groups[row] for row in batch} for batch in apart]
