"""What a dataset's texts tell without a model, against loops over the texts."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from conftest import make_pairs
from datasets import Dataset

from gcbs_st.advice.dataset_facts import default_text_columns, find_dataset_facts

B = 4


def facts_by_loops(rows: list[tuple[str, ...]]) -> dict[str, int]:
    """The same of rows of anchor and positive, row by row."""
    holders = Counter(text for row in rows for text in set(row))
    return {
        "duplicate_rows": len(rows) - len(set(rows)),
        "shared_rows": sum(any(holders[text] > 1 for text in row) for row in rows),
        "widest_rows": max(holders.values()),
    }


@pytest.mark.parametrize("seed", range(5))
def test_facts_are_those_of_a_loop(seed):
    """Repeated rows, shared texts and the widest one, of random rows of few texts."""
    rng = np.random.default_rng(seed)
    texts = [f"text {number}" for number in range(int(rng.integers(5, 60)))]
    rows = [tuple(rng.choice(texts, 2)) for _ in range(40)]
    dataset = Dataset.from_dict({"a": [str(row[0]) for row in rows], "b": [str(row[1]) for row in rows]})
    facts, kept = find_dataset_facts(dataset, ["a", "b"], B)
    assert {name: getattr(facts, name) for name in facts_by_loops(rows)} == facts_by_loops(rows)
    assert (40, 0, False, None) == (facts.rows, facts.blank_rows, facts.one_text, facts.label)
    assert 40 == len(kept)
    holders = Counter(chain.from_iterable(set(row) for row in rows))
    assert holders[facts.widest_text] == facts.widest_rows or facts.widest_rows == 1


def test_rows_without_a_text_are_counted_and_left_out():
    """None, nothing and blanks are no text, in any of the columns."""
    dataset = Dataset.from_dict({"a": ["x", None, "y", "z", "w"], "b": ["p", "q", "  ", "r", "s"], "c": [*"1234", ""]})
    facts, kept = find_dataset_facts(dataset, ["a", "b", "c"], B)
    assert (2, 3, ["x", "z"], True) == (facts.rows, facts.blank_rows, kept["a"], facts.has_negatives)


def test_one_text_is_seen():
    """One column, or two that hold the same, are one text of which dropout makes a pair."""
    pairs = make_pairs(20)
    assert find_dataset_facts(pairs, ["anchor"], B)[0].one_text
    twice = pairs.remove_columns("positive").add_column("positive", pairs["anchor"])
    assert find_dataset_facts(twice, ["anchor", "positive"], B)[0].one_text
    assert not find_dataset_facts(pairs, ["anchor", "positive"], B)[0].one_text


def test_columns_of_groups():
    """Columns whose values recur as groups do: not ids, not a few classes, not numbers with a point, not labels."""
    rows = 200
    dataset = make_pairs(rows)
    for name, values in {
        "image": [i // 2 for i in range(rows)],
        "topic": [f"t{i % 50}" for i in range(rows)],  # as many rows per value as there are batches, or fewer
        "id": list(range(rows)),
        "source": [i % 3 for i in range(rows)],  # more rows per value than batches
        "weight": [0.5] * rows,
        "label": [i // 2 for i in range(rows)],
        "missing": [None] * (rows - 2) + [1, 1],
    }.items():
        dataset = dataset.add_column(name, values)
    facts, _ = find_dataset_facts(dataset, ["anchor", "positive"], B)
    assert ("image", "topic") == facts.group_columns
    assert ("label", ("topic",)) == (facts.label, facts.unused_texts)


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["positive", "negative_2", "anchor", "note"], ["anchor", "positive", "negative_2"]),
        (["question", "answer", "negative"], ["question", "answer", "negative"]),
        (["question", "answer", "note"], ["question", "answer"]),
        (["sentence"], ["sentence"]),
    ],
)
def test_default_columns(columns, chosen):
    """Names decide, then the order; labels are no texts."""
    dataset = Dataset.from_dict({**{name: ["x", "y"] for name in columns}, "score": [0.0, 1.0], "n": [1, 2]})
    assert chosen == default_text_columns(dataset)


def test_what_is_no_text_is_named():
    """A missing column, one of numbers, one twice, no texts at all, and nothing left."""
    dataset = Dataset.from_dict({"a": ["x", None], "n": [1, 2]})
    for columns, words in (
        (["a", "b"], "'b'.*expected some of a, n"),
        (["a", "n"], "'n' holds .*expected texts"),
        (["a", "a"], "each once"),
        (["a"], "1 rows with text in a, expected at least 2"),
    ):
        with pytest.raises(ValueError, match=words):
            find_dataset_facts(dataset, columns, B)
    with pytest.raises(ValueError, match="expected one or more that hold texts"):
        default_text_columns(dataset.remove_columns("a"))
