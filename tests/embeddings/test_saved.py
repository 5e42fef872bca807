"""Embeddings on disk: those of the model's own encode, whole or not there, and what has none is named."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_pairs, make_static_model
from datasets import Dataset

from gcbs_st.embeddings.saved import default_columns, save_embeddings
from gcbs_st.rows.columns import TextColumn

COLUMNS = [TextColumn("anchor"), TextColumn("positive")]


def units(rows: np.ndarray) -> np.ndarray:
    """The rows at length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("dtype", "close"), [("float16", 1e-3), ("float32", 1e-6)])
@pytest.mark.parametrize("chunk_rows", [1, 7, 200, 1000])
def test_they_are_those_of_encode(tmp_path, dtype, close, chunk_rows):
    """Normalised, row by row, whatever the size of the chunks; the files can be mapped."""
    model, pairs = make_static_model(), make_pairs(40)
    files = [tmp_path / "new" / "A.npy", tmp_path / "new" / "P.npy"]
    assert (40, 16) == save_embeddings(model, pairs, COLUMNS, *files, dtype=dtype, chunk_rows=chunk_rows)
    for file, column in zip(files, COLUMNS, strict=True):
        found = np.load(file, mmap_mode="r")
        assert (dtype, (40, 16)) == (found.dtype.name, found.shape)
        np.testing.assert_allclose(found, units(model.encode(list(pairs[column.name]))), atol=close)
    assert sorted(files) == sorted((tmp_path / "new").iterdir())


def test_prompts_are_put_before_the_texts(tmp_path):
    """Each column has its own; a prompt that the model has by default is not used, as in training."""
    model, pairs = make_static_model(), make_pairs(10)
    model.prompts, model.default_prompt_name = {"own": "passage : "}, "own"
    columns = [TextColumn("anchor", "query : "), TextColumn("positive")]
    files = [tmp_path / "A.npy", tmp_path / "P.npy"]
    save_embeddings(model, pairs, columns, *files, dtype="float32")
    expected = [
        model.encode(list(pairs["anchor"]), prompt="query : "),
        model.encode(list(pairs["positive"]), prompt=""),
    ]
    for file, rows in zip(files, expected, strict=True):
        np.testing.assert_allclose(np.load(file), units(rows), atol=1e-6)


def test_one_column_is_both(tmp_path):
    """As in unsupervised training."""
    save_embeddings(make_static_model(), make_pairs(10), COLUMNS[:1], tmp_path / "A.npy", tmp_path / "P.npy")
    assert (tmp_path / "A.npy").read_bytes() == (tmp_path / "P.npy").read_bytes()


def with_row(row: int, **texts: str | None) -> Dataset:
    """Pairs with other texts in one row."""
    pairs = make_pairs(20)
    return Dataset.from_dict(
        {name: [texts[name] if i == row and name in texts else text for i, text in enumerate(pairs[name])]
         for name in pairs.column_names}
    )  # fmt: skip


@pytest.mark.parametrize(("dataset", "columns", "message"), [
    (make_pairs(9), ["anchor", "positve"], "got the column 'positve', expected one of anchor, positive"),
    (make_pairs(9).add_column("n", range(9)), ["anchor", "n"], "column 'n' holds int64, expected texts"),
    (make_pairs(9).add_column("n", [["a"]] * 9), ["anchor", "n"], r"column 'n' holds \w+, expected texts"),
    (make_pairs(0), ["anchor", "positive"], "."),
    (with_row(13, positive=None), ["anchor", "positive"], "row 13 has no text in column 'positive'"),
    (with_row(13, anchor=" \n"), ["anchor", "positive"], "row 13 has no text in column 'anchor'"),
    (with_row(13, positive="?!"), ["anchor", "positive"], r"row 13, column 'positive', is zero, NaN or infinite \('\?!'"),
    (make_pairs(9), ["anchor"] * 3, "columns: got 3"),
])  # fmt: skip
@pytest.mark.parametrize("older", [False, True])
def test_what_cannot_be_embedded_is_named(tmp_path, dataset, columns, message, older):
    """One line that says what and where; files of those names stay as they were, and no others are left."""
    files = [tmp_path / "A.npy", tmp_path / "P.npy"]
    for file in files if older else []:
        file.write_text("older")
    model = make_static_model()
    model.tokenizer.no_padding()  # unknown words alone are a text without a direction
    model[0].embedding.weight.data[1] = 0
    with pytest.raises(ValueError, match=message):
        save_embeddings(model, dataset, [TextColumn(name) for name in columns], *files, chunk_rows=7)
    assert (["older"] * 2 if older else []) == [file.read_text() for file in sorted(tmp_path.iterdir())]


def test_a_model_that_has_diverged_is_seen_at_its_first_row(tmp_path):
    """Where no row at all has an embedding."""
    model = make_static_model()
    model[0].embedding.weight.data[:] = float("nan")
    with pytest.raises(ValueError, match="the embedding of row 0, column 'anchor', is zero, NaN or infinite"):
        save_embeddings(model, make_pairs(9), COLUMNS, tmp_path / "A.npy", tmp_path / "P.npy")
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, error):
    """Neither a part of a file nor a temporary one."""
    calls = []

    def refuse(*args):
        calls.append(sorted(path.suffix for path in tmp_path.iterdir()))
        if len(calls) == 5:
            raise error

    monkeypatch.setattr("gcbs_st.embeddings.saved._refuse_zeros", refuse)
    with pytest.raises(type(error)):
        save_embeddings(
            make_static_model(), make_pairs(40), COLUMNS, tmp_path / "A.npy", tmp_path / "P.npy", chunk_rows=10
        )
    assert [[".tmp", ".tmp"]] * 5 == calls
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "message"), [
    ({"dtype": "int8"}, "dtype: got 'int8', expected one of float16, float32"),
    ({"batch_size": 0}, "batch_size=0, expected at least 1"),
    ({"positives": "A.npy"}, "for anchors and for positives, expected two names"),
])  # fmt: skip
def test_arguments_that_do_not_fit(tmp_path, change, message):
    """Said before anything is written."""
    files = [tmp_path / "A.npy", tmp_path / change.pop("positives", "P.npy")]
    with pytest.raises(ValueError, match=message):
        save_embeddings(make_static_model(), make_pairs(9), COLUMNS, *files, **change)
    assert [] == list(tmp_path.iterdir())


def test_the_columns_by_default():
    """Anchor and positive wherever they stand, else the first two of texts, or the only one."""
    rows = make_pairs(3).add_column("id", range(3)).select_columns(["id", "positive", "anchor"])
    assert ["anchor", "positive"] == default_columns(rows)
    renamed = rows.rename_columns({"anchor": "a", "positive": "b"}).add_column("c", ["x"] * 3)
    assert ["b", "a"] == default_columns(renamed)
    assert ["c"] == default_columns(renamed.select_columns(["id", "c"]))
    with pytest.raises(ValueError, match="got the columns id, expected one or two that hold texts"):
        default_columns(renamed.select_columns(["id"]))
