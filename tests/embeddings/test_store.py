"""Tests of ``gcbs_st.embeddings.store``: what goes in comes out, in memory and in files, and after a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcbs_st.embeddings.store import NEVER, EmbeddingStore


@pytest.fixture(params=["memory", "files"])
def make(request, tmp_path):
    """Makes stores of 10 rows and 2 columns, all in one place."""

    def store(**options):
        folder = tmp_path / "store" if request.param == "files" else None
        return EmbeddingStore(**{"rows": 10, "columns": 2, "key": "k", "folder": folder, **options})

    return store


def arrays(rows, value=0.0, dim=3):
    """Two columns of rows that tell which row and column they are of."""
    return [np.stack([np.asarray(rows) + value + 100 * column] * dim, axis=1).astype(np.float32) for column in (0, 1)]


@settings(max_examples=50, deadline=None)
@given(
    writes=st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 50)), max_size=8),
    in_files=st.booleans(),
)
def test_the_last_write_of_a_row_counts(writes, in_files, tmp_path_factory):
    """Against a dictionary that is written row by row."""
    folder = tmp_path_factory.mktemp("s") / "store" if in_files else None
    store, slow = EmbeddingStore(10, 2, "k", folder=folder), {}
    for number, (rows, step) in enumerate(writes):
        store.write(np.array(rows, np.int64), arrays(rows, number / 10), step)
        for row in rows:
            slow[row] = (step, row + np.float32(number / 10))
    assert [slow.get(row, (NEVER, 0))[0] for row in range(10)] == store.steps().tolist()
    seen = np.array(sorted(slow), np.int64)
    if len(seen):
        anchors, positives = store.read(seen)
        np.testing.assert_allclose(anchors[:, 1], [slow[row][1] for row in seen], rtol=1e-6)
        np.testing.assert_allclose(positives[:, 2], [slow[row][1] + 100 for row in seen], rtol=1e-6)
    store.close()


def test_half_precision_and_all_rows(make):
    """float16 is what is stored and read; all rows are not copied."""
    store = make(dtype="float16")
    store.write(np.arange(10), arrays(np.arange(10), 1 / 3), 0)
    anchors, _ = store.read(np.arange(10))
    assert np.float16 == anchors.dtype
    np.testing.assert_array_equal(anchors[:, 0], (np.arange(10) + np.float32(1 / 3)).astype(np.float16))
    assert np.shares_memory(anchors, store.read(np.arange(10))[0]) or isinstance(anchors, np.memmap)


def test_one_step_a_row(make):
    """Rows that come from several steps keep their own."""
    store = make()
    store.write(np.array([4, 2]), arrays([4, 2]), np.array([9, 5]))
    assert [9, 5] == store.steps()[[4, 2]].tolist()


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([10], arrays([10]), "got rows 10 to 10, expected 0 to 9"),
        ([-1], arrays([-1]), "got rows -1 to -1"),
        ([1], arrays([1])[:1], r"expected 2 of \(1, d\)"),
        ([1, 2], arrays([1]), r"expected 2 of \(2, d\)"),
        ([1], arrays([1], dim=4), "got embeddings of 4 dimensions, expected 3 as before"),
    ],
)
def test_bad_rows_are_refused_and_lose_nothing(make, rows, given, message):
    """The message says what was given and expected; what was stored stays."""
    store = make()
    store.write(np.array([0]), arrays([0]), 3)
    with pytest.raises(ValueError, match=message):
        store.write(np.array(rows), given, 4)
    assert [3, *[NEVER] * 9] == store.steps().tolist()


def test_an_empty_store(make):
    """No row was written: nothing to read, nothing lost on the way through a checkpoint."""
    store = make()
    store.write(np.zeros(0, np.int64), [np.zeros((0, 3)), np.zeros((0, 3))], 1)
    assert [NEVER] * 10 == store.steps().tolist()
    with pytest.raises(ValueError, match="no row was embedded yet"):
        store.read(np.array([1]))


@pytest.mark.parametrize("written", [False, True])
def test_a_checkpoint_brings_back_what_was_there(make, tmp_path, written):
    """Rows, ages and dimensions; what was written after the checkpoint is forgotten."""
    store = make()
    if written:
        store.write(np.array([1, 7]), arrays([1, 7]), 5)
    store.save(tmp_path / "checkpoint")
    store.write(np.array([1, 3]), arrays([1, 3], 0.5), 8)
    store.load(tmp_path / "checkpoint")
    expected = [NEVER, 5, *[NEVER] * 5, 5, NEVER, NEVER] if written else [NEVER] * 10
    assert expected == store.steps().tolist()
    if written:
        np.testing.assert_array_equal(store.read(np.array([1, 7]))[1], arrays([1, 7])[1])
    store.write(np.array([2]), arrays([2]), 9)
    assert 9 == store.steps()[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "other"}, "has the key k, but this run other"),
        ({"rows": 11}, "has the rows 10, but this run 11"),
        ({"dtype": "float16"}, "is float32, but this run stores float16"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(make, tmp_path, change, message):
    """Another dataset, model or form."""
    store = make()
    store.write(np.array([1]), arrays([1]), 5)
    store.save(tmp_path / "checkpoint")
    other = make(**change)
    with pytest.raises(ValueError, match=message):
        other.load(tmp_path / "checkpoint")
    assert (other.steps() == NEVER).all()


def test_a_damaged_checkpoint_is_refused(make, tmp_path):
    """A file that is too short, a description that is cut, a folder that is missing."""
    store = make()
    store.write(np.array([1]), arrays([1]), 5)
    store.save(tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "column-1.bin"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"column-1.bin holds 116 bytes, expected 120"):
        store.load(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "store.json").write_text("{")
    with pytest.raises(ValueError, match="is not there or is damaged"):
        store.load(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="is not there or is damaged"):
        store.load(tmp_path / "nowhere")


def test_a_save_that_is_cut_short_leaves_the_older_one(make, tmp_path, monkeypatch):
    """The folder's name is taken on last."""
    store = make()
    store.write(np.array([1]), arrays([1]), 5)
    store.save(tmp_path / "checkpoint")
    store.write(np.array([2]), arrays([2]), 6)
    monkeypatch.setattr(json, "dumps", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.save(tmp_path / "checkpoint")
    store.load(tmp_path / "checkpoint")
    assert [5, NEVER] == store.steps()[[1, 2]].tolist()


def test_processes_share_files(tmp_path):
    """What another process wrote is seen, and nothing of it is overwritten by opening the files."""
    code = (
        "import sys, numpy as np; from gcbs_st.embeddings.store import EmbeddingStore;"
        "s = EmbeddingStore(10, 2, 'k', folder=sys.argv[1]); s.write(np.array([3]), [np.full((1, 3), 3.0)] * 2, 4)"
    )
    store = EmbeddingStore(10, 2, "k", folder=tmp_path / "store")
    store.write(np.array([1]), arrays([1]), 2)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], check=True, timeout=120)
    reader = EmbeddingStore(10, 2, "k", folder=tmp_path / "store")
    assert [2, 4] == reader.steps()[[1, 3]].tolist() == store.steps()[[1, 3]].tolist()
    assert [1.0, 3.0] == reader.read(np.array([1, 3]))[0][:, 0].tolist()
