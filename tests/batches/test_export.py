"""The export of planned batches: its files hold the dataset in the order of the plan, and are whole or not there."""

from __future__ import annotations

import errno
import json
import os
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_pairs
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from gcbs_st.batches import export
from gcbs_st.batches.arrow_rows import ArrowRows
from gcbs_st.batches.export import export_batches, read_manifest, shard_files, shuffled_batches
from gcbs_st.files import whole_folder


def odd_rows(count: int = 30) -> Dataset:
    """Rows of several kinds of column, with what is easily lost on the way."""
    return Dataset.from_dict(
        {
            "anchor": [f"Zürich {i} 雪 🙂\nline" for i in range(count)],
            "positive": [f"p{i}" if i % 7 else "" for i in range(count)],
            "score": [None if i % 3 == 0 else i / 3 for i in range(count)],
            "tags": [None if i % 5 == 0 else [str(i)] * (i % 4) for i in range(count)],
            "label": [i % 2 for i in range(count)],
        },
        features=Features({
            "anchor": Value("string"), "positive": Value("string"), "score": Value("float32"),
            "tags": [Value("string")], "label": ClassLabel(names=["no", "yes"]),
        }),
    )  # fmt: skip


def read_back(folder) -> Dataset:
    """The whole export as a dataset."""
    return load_dataset(
        "parquet", data_files=shard_files(folder), split="train", cache_dir=str(folder.parent / "cache")
    )


@pytest.fixture(autouse=True)
def quiet_host():
    """Reads without bars."""
    import datasets

    datasets.disable_progress_bars()


# ------------------------------------------------------------------ what is written


@pytest.mark.parametrize(("batch_size", "shard_rows", "sizes"), [
    (4, 8, [8, 8, 8, 4]), (4, 11, [8, 8, 8, 4]), (4, 1, [4] * 7), (30, 100, [30]), (1, 100, [30]), (7, 100, [28]),
])  # fmt: skip
def test_the_files_hold_the_dataset_in_the_order(tmp_path, batch_size, shard_rows, sizes):
    """All columns with their types, row_id and batch_id, in shards of whole batches; the rest is left out."""
    rows, order = odd_rows(), np.random.default_rng(0).permutation(30)
    manifest = export_batches(rows, order, batch_size, tmp_path / "out", rows_per_shard=shard_rows)
    assert sizes == [pq.read_metadata(file).num_rows for file in shard_files(tmp_path / "out")]
    whole = order[: sum(sizes)]
    found, expected = read_back(tmp_path / "out"), rows.select(whole)
    assert expected.to_list() == found.remove_columns(["row_id", "batch_id"]).to_list()
    assert {**rows.features, "row_id": Value("int64"), "batch_id": Value("int64")} == found.features
    assert whole.tolist() == list(found["row_id"])
    assert (np.arange(len(whole)) // batch_size).tolist() == list(found["batch_id"])
    assert (len(whole), len(whole) // batch_size, 30 - len(whole)) == (
        manifest["rows"], manifest["batches"], manifest["left_out"]
    )  # fmt: skip
    assert manifest == read_manifest(tmp_path / "out", check_contents=True)
    assert [tmp_path / "out"] == [path for path in tmp_path.iterdir() if path.name != "cache"]


@given(st.data())
def test_rows_are_taken_as_select_takes_them(data):
    """Of a dataset in several pieces, selected from or not, in any order, with repeats and none at all."""
    whole = concatenate_datasets([odd_rows(9), odd_rows(1), odd_rows(5)])
    kept = data.draw(st.lists(st.integers(0, 14), min_size=1, max_size=20))
    dataset = whole.select(kept) if data.draw(st.booleans()) else whole
    rows = np.array(data.draw(st.lists(st.integers(0, len(dataset) - 1), max_size=25)), dtype=np.int64)
    assert [dataset[int(i)] for i in rows] == ArrowRows(dataset).take(rows).to_pylist()


@pytest.mark.parametrize("most", [3, 0])
def test_more_text_than_one_piece_holds_is_taken_by_halves(monkeypatch, most):
    """Where Arrow refuses to join strings of more than 2 GB, fewer rows are joined at a time, down to one."""
    pairs, sizes = make_pairs(20), []

    def from_batches(pieces, schema):
        sizes.append(sum(len(piece) for piece in pieces))
        if sizes[-1] > most:
            raise pa.ArrowInvalid("offset overflow while concatenating arrays")
        return pa.Table.from_batches(pieces, schema)

    rows, order = ArrowRows(pairs), np.random.default_rng(0).permutation(20)
    names = {name: getattr(pa, name) for name in ("array", "concat_tables", "ArrowInvalid")}
    fake = SimpleNamespace(Table=SimpleNamespace(from_batches=from_batches), **names)
    monkeypatch.setattr("gcbs_st.batches.arrow_rows.pa", fake)
    if not most:
        with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
            rows.take(order)
    else:
        assert [pairs[int(i)] for i in order] == rows.take(order).to_pylist()
    assert (20, most or 1) == (sizes[0], sizes[-1] if not most else max(s for s in sizes if s <= most))


def test_a_small_memory_changes_nothing(tmp_path, monkeypatch):
    """Rows are gathered a few at a time, and the files are the same to the byte."""
    rows, order = make_pairs(), np.random.default_rng(0).permutation(200)
    first = export_batches(rows, order, 8, tmp_path / "a", rows_per_shard=64)
    taken, original = [], ArrowRows.take
    monkeypatch.setattr(ArrowRows, "take", lambda self, some: taken.append(len(some)) or original(self, some))
    monkeypatch.setattr(export, "_GATHERED_BYTES", 20 * ArrowRows(rows).bytes_per_row)
    monkeypatch.setattr(export, "_GROUP_ROWS", 16)
    export_batches(rows, order, 8, tmp_path / "b", rows_per_shard=64)
    assert {16, 8} == set(taken[1:])
    assert read_back(tmp_path / "a").to_list() == read_back(tmp_path / "b").to_list()
    assert [64, 64, 64, 8] == [shard["rows"] for shard in first["shards"]]


def test_rows_may_recur_in_other_batches(tmp_path):
    """As planners that do not cover each row once leave them; the rest is counted as left out."""
    order = np.array([0, 1, 1, 2, 0, 2])
    manifest = export_batches(make_pairs(10), order, 2, tmp_path / "out")
    assert (order.tolist(), 7) == (list(read_back(tmp_path / "out")["row_id"]), manifest["left_out"])


def test_batches_are_shuffled_whole():
    """The same batches in another order, the same for the same seed; what fills no batch is dropped."""
    order = np.arange(50)
    found = shuffled_batches(order, 4, seed=1)
    assert sorted(order[:48].reshape(-1, 4).tolist()) == sorted(found.reshape(-1, 4).tolist())
    assert not np.array_equal(order[:48], found)
    np.testing.assert_array_equal(found, shuffled_batches(order, 4, seed=1))


def test_a_stream_yields_the_planned_batches(tmp_path):
    """By the manifest's list of files, and by a pattern, B rows at a time."""
    order = np.random.default_rng(0).permutation(200)
    export_batches(make_pairs(), order, 8, tmp_path / "out", rows_per_shard=40)
    for files in (shard_files(tmp_path / "out"), str(tmp_path / "out" / "*.parquet")):
        stream = load_dataset("parquet", data_files=files, split="train", streaming=True)
        assert order.reshape(-1, 8).tolist() == [batch["row_id"] for batch in stream.iter(batch_size=8)]
        assert [[i] * 8 for i in range(25)] == [batch["batch_id"] for batch in stream.batch(8)]


# ------------------------------------------------------------------ digests


def test_the_digest_is_of_the_contents():
    """Not of how the rows lie; another value, order, name or type is another one."""
    rows = odd_rows()
    same = [
        rows.select(range(30)),
        rows.select(list(reversed(range(30)))).select(list(reversed(range(30)))),
        concatenate_datasets([rows.select(range(11)), rows.select(range(11, 30))]),
        concatenate_datasets([rows.select(range(11)), rows.select(range(11, 30))]).flatten_indices(),
    ]
    assert {ArrowRows(rows).digest()} == {ArrowRows(other).digest() for other in same}
    others = [
        rows.select(list(reversed(range(30)))), rows.rename_column("score", "points"), rows.remove_columns("tags"),
        rows.select(range(29)), rows.cast_column("score", Value("float64")),
        rows.map(lambda row: {"positive": row["positive"].upper()}),
    ]  # fmt: skip
    assert 7 == len({ArrowRows(rows).digest(), *(ArrowRows(other).digest() for other in others)})


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(("order", "batch_size", "message"), [
    (np.arange(10.0), 2, "got float64 of shape"),
    (np.arange(10).reshape(5, 2), 2, "expected .m,. integers"),
    (np.arange(3), 4, "got 3 rows, expected at least one batch of 4"),
    (np.arange(11), 2, r"got rows 0..10, expected 0..9, since the dataset has 10 rows"),
    (np.array([-1, 0]), 2, "got rows -1..0"),
    (np.array([0, 1, 2, 2]), 2, "a row stands twice in batch 1"),
    (np.arange(10), 0, "batch_size: got 0"),
])  # fmt: skip
def test_an_order_that_does_not_fit(tmp_path, order, batch_size, message):
    """What was given and what was expected; no folder is made."""
    with pytest.raises(ValueError, match=message):
        export_batches(make_pairs(10), order, batch_size, tmp_path / "out")
    assert [] == list(tmp_path.iterdir())


def test_a_dataset_that_does_not_fit(tmp_path):
    """A column of the export's names, a transform, no rows per shard."""
    rows, order = make_pairs(10), np.arange(10)
    with pytest.raises(ValueError, match="has a column 'row_id'"):
        export_batches(rows.add_column("row_id", range(10)), order, 2, tmp_path / "out")
    with pytest.raises(ValueError, match="got a dataset with a transform"):
        export_batches(rows.with_transform(lambda block: block), order, 2, tmp_path / "out")
    with pytest.raises(ValueError, match="rows_per_shard: got 0"):
        export_batches(rows, order, 2, tmp_path / "out", rows_per_shard=0)
    assert [] == list(tmp_path.iterdir())


def test_an_export_that_is_there(tmp_path):
    """Refused with its reason, replaced if asked for, and nothing but an export is ever replaced."""
    rows, order, out = make_pairs(20), np.arange(20), tmp_path / "out"
    export_batches(rows, order, 4, out, rows_per_shard=4)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    for other, new_order, message in (
        (rows, order, "this very export already"),
        (rows, order[::-1], "the export of another plan"),
        (make_pairs(20, seed=1), order, "the export of another dataset"),
    ):
        with pytest.raises(ValueError, match=message):
            export_batches(other, new_order, 4, out)
    assert before == {file.name: file.read_bytes() for file in out.iterdir()}
    export_batches(rows, order[::-1], 4, out, overwrite=True)
    assert {"batches-00000-of-00001.parquet", "manifest.json"} == {file.name for file in out.iterdir()}
    assert order[::-1].tolist() == list(read_back(out)["row_id"])
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"also holds notes.txt"):
        export_batches(rows, order, 4, out, overwrite=True)
    (out / "notes.txt").unlink()
    (out / "manifest.json").unlink()
    for folder in (out, out / "batches-00000-of-00001.parquet"):
        with pytest.raises(ValueError, match="is there and is no export"):
            export_batches(rows, order, 4, folder, overwrite=True)


@pytest.mark.parametrize("fails_at", [0, 2, "manifest"])
@pytest.mark.parametrize("older", [False, True])
def test_a_failing_write_leaves_nothing(tmp_path, monkeypatch, fails_at, older):
    """Neither files nor a manifest nor a temporary folder; an older export stays as it was."""
    rows, order, out = make_pairs(20), np.arange(20), tmp_path / "out"
    if older:
        export_batches(rows, order[::-1], 4, out)
    before = {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    full = OSError(errno.ENOSPC, "No space left on device")
    written, original = [], pq.ParquetWriter.write_table

    def write_table(self, *args, **options):
        written.append(original(self, *args, **options))
        if len(written) - 1 == fails_at:
            raise full

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    if fails_at == "manifest":
        monkeypatch.setattr(export, "write_json", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left"):
        export_batches(rows, order, 4, out, rows_per_shard=4, overwrite=older)
    assert written
    assert before == {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert (["out"] if older else []) == [path.name for path in tmp_path.iterdir()]


def test_a_folder_that_cannot_be_renamed_keeps_the_older_one(tmp_path, monkeypatch):
    """The older folder is put back."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    original = os.replace

    def replace(source, target):
        if str(source).endswith(".tmp"):
            raise OSError("no")
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="no"), whole_folder(tmp_path / "out", replace=True) as staged:
        (staged / "new").write_text("new")
    assert ["out", "out/old"] == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))


# ------------------------------------------------------------------ reading the manifest


@pytest.mark.parametrize(("damage", "message"), [
    (lambda out: (out / "manifest.json").unlink(), "holds no manifest.json"),
    (lambda out: (out / "manifest.json").write_text("{"), "is damaged"),
    (lambda out: (out / "manifest.json").write_text('{"format": 9}'), "has format 9, expected 1"),
    (lambda out: change(out, rows=8), "numbers of rows and batches do not agree"),
    (lambda out: change(out, shards=[{"rows": 20}]), "is damaged"),
    (lambda out: change(out, shards=[{"name": "../a", "rows": 20, "bytes": 1}]), "is damaged"),
    (lambda out: next(out.glob("*-00002-*")).unlink(), "batches-00002-of-00005.parquet is missing"),
    (lambda out: next(out.glob("*-00002-*")).write_bytes(b"PAR1"), "has 4 bytes, expected"),
    (lambda out: (out / "more.parquet").write_bytes(b""), "more.parquet is not of this export"),
])  # fmt: skip
def test_what_is_not_whole_is_said(tmp_path, damage, message):
    """No reader takes a part of an export, or more than it, for the export."""
    export_batches(make_pairs(20), np.arange(20), 4, tmp_path / "out", rows_per_shard=4)
    damage(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / "out")


def change(out, **values):
    """Other values in a manifest."""
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, **values}))


def test_contents_are_compared_if_asked_for(tmp_path):
    """A byte that has changed is seen by its hash alone."""
    export_batches(make_pairs(20), np.arange(20), 4, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.parquet")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    read_manifest(tmp_path / "out")
    with pytest.raises(ValueError, match="its sha256 is not that of"):
        read_manifest(tmp_path / "out", check_contents=True)
