"""Which rows of a dataset must not share a batch: texts, negatives, groups, and the host's own meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

from gcbs_st.batches import shared_values
from gcbs_st.batches.shared_values import SharedValues

N = float("nan")


def apart(rows: dict[str, list[Any]], columns: list[str], **given: Any) -> set[tuple[int, int]]:
    """The pairs of rows that must not share a batch."""
    dataset = Dataset.from_dict(rows)
    shared = SharedValues.from_dataset(dataset, columns, **given)
    pairs = [(i, j) for j in range(len(dataset)) for i in range(j)]
    return {pair for pair in pairs if shared.clashes(np.array(pair), 2) is not None}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({"q": ["a", "a", "b"], "p": ["x", "y", "z"]}, {(0, 1)}),
        ({"q": ["a", "b", "c"], "p": ["x", "y", "x"]}, {(0, 2)}),
        ({"q": ["a", "b", "c"], "p": ["b", "y", "z"]}, {(0, 1)}),
        ({"q": ["a", "b"], "p": ["a", "b"]}, set()),
        ({"q": ["a", "b", "c"], "p": ["x", "y", "z"], "n": ["y", "u", "u"]}, {(0, 1)}),
        ({"q": ["a", "b", "c"], "p": ["x", "y", "z"], "n": ["v", "a", "v"]}, {(0, 1)}),
        ({"q": ["a", "b", "c"], "p": ["x", "y", "z"], "n": ["v", "v", "v"], "m": ["u", "u", "y"]}, {(1, 2)}),
        ({"q": ["a", "b"], "p": ["x", "y"], "n": [["u", "y"], ["u", "w"]]}, {(0, 1)}),
        ({"q": ["a", "b"], "p": ["x", "y"], "n": [["u", "v"], ["u", "w"]]}, set()),
    ],
    ids=[
        "anchor", "positive", "anchor and positive", "a row's own", "a negative that is a positive",
        "a negative that is an anchor", "negatives of both", "a list of negatives", "lists that share negatives",
    ],
)  # fmt: skip
def test_which_rows_are_kept_apart(rows, expected):
    """Those of which one would be the other's false negative."""
    assert expected == apart(rows, list(rows))


def test_groups_are_values_of_their_own():
    """A group is not the text that looks like it, and nothing is no group."""
    rows = {"q": ["7", "a", "b", "c", "d", "e"], "p": ["1", "2", "3", "4", "5", "6"]}
    assert {(1, 3)} == apart(rows, ["q", "p"], groups=[5, 7, None, 7, None, N])
    both = apart({**rows, "q": ["7", "7", *"bcde"]}, ["q", "p"], groups=["x", "y", N, "y", N, "x"])
    assert {(0, 1), (1, 3), (0, 5)} == both


ROWS: dict[str, list[Any]] = {
    "anchor": ["1", "a", "b", "A", "b ", "c", "None", "e", "f", "x", "[1, 2]", "g", "h", "é"],
    "positive": [2, 1, 3, 4, 5, 6, 7, 8, 3, 10, 11, 12, 1, 13],
    "negative": ["p", "q", "r", "a", "s", "b", "t", None, "u", "x", "v", "w", "y", "e\u0301"],
    "more": [[i, 2] if i < 3 else [0, i] for i in range(14)],
    "label": [0] * 14,
}


def test_strictly_sharing_is_what_the_host_means():
    """Two rows clash if and only if the host's NO_DUPLICATES sampler cannot put both in one batch."""
    dataset, expected = Dataset.from_dict(ROWS), set()
    for j in range(len(dataset)):
        for i in range(j):
            theirs = NoDuplicatesBatchSampler(dataset.select([i, j]), 2, True, valid_label_columns=["label"])
            if not list(theirs):
                expected.add((i, j))
    assert 5 < len(expected) < 20
    assert expected == apart(ROWS, ["anchor", "positive", "negative", "more"], strict=True)


def test_a_dataset_is_read_in_blocks(monkeypatch):
    """Blocks make no difference, a shorter last one included."""
    rows = {"q": [f"t{i % 5}" for i in range(14)], "p": [f"p{i}" for i in range(14)]}
    expected = apart(rows, ["q", "p"])
    monkeypatch.setattr(shared_values, "_READ_ROWS", 4)
    assert expected == apart(rows, ["q", "p"]) != set()


def test_a_transform_applies():
    """Values are those that training sees, in columns that only the transform makes."""
    dataset = Dataset.from_dict({"a": ["x", "X"], "b": ["1", "2"]})
    assert not SharedValues.from_dataset(dataset, ["a", "b"])
    dataset.set_transform(lambda rows: {"q": [text.lower() for text in rows["a"]], "p": rows["b"]})
    assert SharedValues.from_dataset(dataset, ["q", "p"]).clashes(np.arange(2), 2) is not None


def test_what_is_no_text_is_not_read():
    """Images beside texts are not decoded to be compared; two rows with the same caption are kept apart."""
    pillow = pytest.importorskip("PIL.Image")
    from datasets import Features, Image, Value

    images = [pillow.new("RGB", (2, 2), color) for color in ("red", "red", "blue")]
    dataset = Dataset.from_dict(
        {"image": images, "text": ["a", "b", "b"]}, features=Features({"image": Image(), "text": Value("string")})
    )
    assert {1, 2} == {SharedValues.from_dataset(dataset, ["image", "text"]).clashes(np.array([1, 2]), 2).row, 2}
    assert SharedValues.from_dataset(dataset, ["image", "text"]).clashes(np.array([0, 1]), 2) is None
    assert SharedValues.from_dataset(dataset, ["image", "text"], strict=True).clashes(np.array([0, 1]), 2) is not None


@given(
    seed=st.integers(0, 2**32 - 1), batches=st.integers(1, 6), batch_size=st.integers(1, 5), extra=st.integers(0, 4)
)
def test_rows_are_drawn_that_can_be_kept_apart(seed, batches, batch_size, extra):
    """The first of the order, no value in more rows than there are batches where the rest allows it."""
    n = batches * batch_size + extra
    rng = np.random.default_rng(seed)
    values, order = rng.integers(max(1, n // 2), size=n), rng.permutation(n)
    found = SharedValues(np.arange(n), values).draw(order, batches, batch_size)
    assert batches * batch_size == len(set(found.tolist())) == len(found)
    usable = np.minimum(np.bincount(values), batches).sum()
    if usable >= batches * batch_size:
        assert np.bincount(values[found]).max() <= batches
    if np.bincount(values).max() <= batches:
        assert order[: len(found)].tolist() == found.tolist()


def test_what_clashes_is_told():
    """The share of rows, how widespread the value is, a row that holds it, and its text."""
    rows = {"q": ["a"] * 5 + ["b", "c", "d", "e", "f"], "p": [f"p{i}" for i in range(10)]}
    shared = SharedValues.from_dataset(Dataset.from_dict(rows), ["q", "p"])
    found = shared.clashes(shared.separate(np.arange(10), 5), 5)
    assert (5, 10, 2, 0.5) == (found.holders, found.rows, found.batches, found.share)
    assert ("text", "a") == shared.name_widest(found.row, [rows["q"][found.row], rows["p"][found.row]])
    grouped = SharedValues.from_dataset(Dataset.from_dict(rows), ["p"], groups=[3] * 10)
    assert ("group", 3) == grouped.name_widest(7, ["p7"], 3)


def test_separated_for_all_ranks_or_at_least_for_each():
    """Where two ranks' batches have no place for a text, each rank's own batch still has it once."""
    values = np.array([0, 0, 0, 0, 1, 2, 3, 4])
    shared = SharedValues(np.arange(8), values)
    found = shared.separate_for(np.arange(8), 4, 2)
    assert [1, 1, 1, 1] == (values[found].reshape(4, 2) == 0).sum(axis=1).tolist()
    wide = SharedValues(np.arange(8), np.array([0, 0, 1, 2, 3, 4, 5, 6]))
    assert wide.clashes(wide.separate_for(np.arange(8), 4, 2), 4) is None


def test_rows_of_overlapping_batches_are_replaced():
    """A row that meets its text again makes room for a random one, and no row stands in a batch twice."""
    values = np.repeat(np.arange(10), 2)
    shared = SharedValues(np.arange(20), values)
    order = np.array([0, 1, 2, 3, 4, 6, 8, 10])
    found = shared.replace_clashing(order, 4, np.random.default_rng(0))
    assert shared.clashes(found, 4) is None
    assert [4, 4] == [len(set(batch)) for batch in found.reshape(2, 4).tolist()]
    assert [4, 6, 8, 10] == found[4:].tolist()
