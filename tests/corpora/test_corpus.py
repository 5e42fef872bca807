"""Training texts: every kind of source gives the same columns, and every bad one a message that says what to do."""

from __future__ import annotations

import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from gcbs_st.corpora.corpus import load_corpus, split_held_out
from gcbs_st.rows.training_set import corpus_hash, require_map_style

ROWS = [{"anchor": f"a {i}", "positive": f"p {i}", "image": i // 2} for i in range(4)]
EXPECTED = {"anchor": ["a 0", "a 1", "a 2", "a 3"], "positive": ["p 0", "p 1", "p 2", "p 3"]}


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caches of each test apart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows in the format that the file's name asks for, and return the name."""
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    if ending == "parquet":
        Dataset.from_list(rows).to_parquet(str(path))
        return str(path)
    separator = {"csv": ",", "tsv": "\t"}.get(ending)
    if separator:
        table = [list(rows[0]), *(list(row.values()) for row in rows)]
        text = "\n".join(separator.join("" if cell is None else str(cell) for cell in row) for row in table)
    elif ending == "txt":
        text = "\n".join(row["anchor"] for row in rows)
    else:
        text = json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows))
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return str(path)


@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.json.gz", "x.csv", "x.csv.gz", "x.tsv", "x.tsv.gz", "x.parquet"]
)
def test_files_of_pairs(tmp_path: Path, name: str) -> None:
    """Every file format gives the text columns in order, without the other columns."""
    assert EXPECTED == load_corpus(write(tmp_path / name, ROWS)).to_dict()


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
def test_text_file_is_unsupervised(tmp_path: Path, name: str) -> None:
    """One sentence a line: anchor and positive are the same text."""
    expected = {"anchor": EXPECTED["anchor"], "positive": EXPECTED["anchor"]}
    assert expected == load_corpus(write(tmp_path / name, ROWS)).to_dict()


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.csv", "x.txt.gz"])
def test_a_rewritten_file_is_read_anew(tmp_path: Path, name: str) -> None:
    """The content decides, even if size and time of the file stay the same."""
    path = tmp_path / name
    load_corpus(write(path, ROWS))
    before = path.stat()
    write(path, [{**row, "anchor": row["anchor"].replace("a", "b")} for row in ROWS])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ["b 0", "b 1", "b 2", "b 3"] == list(load_corpus(str(path))["anchor"])


def test_words_that_look_missing_are_texts(tmp_path: Path) -> None:
    """The captions None, NA and null in a csv file are kept."""
    rows = [{"anchor": text, "positive": "p"} for text in ("None", "NA", "null")]
    assert ["None", "NA", "null"] == list(load_corpus(write(tmp_path / "x.csv", rows))["anchor"])


def test_group_column_is_kept(tmp_path: Path) -> None:
    """`group` keeps a column of any type, last and under the name group."""
    dataset = load_corpus(write(tmp_path / "x.jsonl", ROWS), group="image")
    assert {**EXPECTED, "group": [0, 0, 1, 1]} == dataset.to_dict()
    dataset = load_corpus(write(tmp_path / "y.jsonl", ROWS), columns=["anchor"], group="image")
    assert ["anchor", "positive", "group"] == dataset.column_names


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["q", "d"], {"anchor": "Q", "positive": "D"}),
        (["d", "q", "n"], {"anchor": "D", "positive": "Q", "negative": "N"}),
        (["q", "d", "n", "m"], {"anchor": "Q", "positive": "D", "negative_1": "N", "negative_2": "M"}),
        (["q"], {"anchor": "Q", "positive": "Q"}),
        ("q", {"anchor": "Q", "positive": "Q"}),
    ],
)
def test_order_of_columns_decides(tmp_path: Path, columns: list[str], expected: dict[str, str]) -> None:
    """Named columns become anchor, positive and negatives in the order they are named."""
    source = write(tmp_path / "x.jsonl", [{"m": "M", "n": "N", "d": "D", "q": "Q", "score": 1.5}] * 2)
    dataset = load_corpus(source, columns=columns)
    assert [expected, expected] == dataset.to_list()
    assert list(expected) == dataset.column_names


def test_columns_can_swap_names(tmp_path: Path) -> None:
    """Anchor and positive can be exchanged."""
    dataset = load_corpus(write(tmp_path / "x.jsonl", ROWS), columns=["positive", "anchor"])
    assert {"anchor": EXPECTED["positive"], "positive": EXPECTED["anchor"]} == dataset.to_dict()


def test_triplets_by_name(tmp_path: Path) -> None:
    """Without `columns`, anchor, positive and all negatives are taken; one negative has no number."""
    row = {"negative_5": "N", "x": "X", "positive": "P", "anchor": "A"}
    assert [{"anchor": "A", "positive": "P", "negative": "N"}] * 2 == load_corpus(
        write(tmp_path / "x.jsonl", [row, row])
    ).to_list()
    row["negative"] = "M"
    assert [{"anchor": "A", "positive": "P", "negative_1": "N", "negative_2": "M"}] * 2 == load_corpus(
        write(tmp_path / "y.jsonl", [row, row])
    ).to_list()


def test_only_text_column_is_unsupervised(tmp_path: Path) -> None:
    """A data set with one text column and a label needs no `columns`."""
    dataset = load_corpus(write(tmp_path / "x.jsonl", [{"label": 1, "sentence": "s"}] * 2))
    assert [{"anchor": "s", "positive": "s"}] * 2 == dataset.to_list()


def test_blank_rows_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows with a missing or blank text go, and the log says how many."""
    bad = [{"anchor": None, "positive": "p"}, {"anchor": "a", "positive": " \t\n"}, {"anchor": "", "positive": "p"}]
    with caplog.at_level(logging.WARNING, "gcbs_st.corpora.corpus"):
        dataset = load_corpus(write(tmp_path / "x.jsonl", [*ROWS[:2], *bad, *ROWS[2:]]))
    assert EXPECTED == dataset.to_dict()
    assert "dropped 3 of 7 rows" in caplog.text


def test_max_rows_counts_usable_rows(tmp_path: Path) -> None:
    """The first usable rows are kept, blank ones not counted."""
    source = write(tmp_path / "x.jsonl", [{"anchor": " ", "positive": "p"}, *ROWS])
    assert ["a 0", "a 1"] == list(load_corpus(source, max_rows=2)["anchor"])
    assert 4 == len(load_corpus(source, max_rows=99))


def test_saved_folder(tmp_path: Path) -> None:
    """A Dataset or one split of a DatasetDict is read from its folder, and nothing is written there."""
    data = Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data.select([0]), dev=data).save_to_disk(tmp_path / "parts")
    files = sorted(tmp_path.rglob("*"))
    assert EXPECTED == load_corpus(str(tmp_path / "one")).to_dict()
    assert EXPECTED == load_corpus(str(tmp_path / "parts"), split="dev").to_dict()
    assert ["a 0", "a 1", "a 2", "a 3"] == list(load_corpus(str(tmp_path / "one"), columns=["anchor"])["positive"])
    assert files == sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"got split 'test' .* expected one of \['train', 'dev'\]"):
        load_corpus(str(tmp_path / "parts"), split="test")


def test_other_folder_is_refused(tmp_path: Path) -> None:
    """A folder that was not saved by datasets is named."""
    with pytest.raises(ValueError, match="expected one written by save_to_disk"):
        load_corpus(str(tmp_path))


def test_hub_name_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other name goes to load_dataset, with configuration and split."""
    calls = []

    def load_dataset(*args: object, **keywords: object) -> Dataset:
        calls.append((args, keywords))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    dataset = load_corpus("sentence-transformers/all-nli", name="pair", split="train[:4]")
    assert EXPECTED == dataset.to_dict()
    assert [(("sentence-transformers/all-nli", "pair"), {"split": "train[:4]"})] == calls


@pytest.mark.parametrize(
    ("file", "content", "column"),
    [("nli.csv", "sent0,sent1\nNone,a cat\nNA,a dog\n", "sent0"), ("wiki.txt", "None\nNA\n", "text")],
)
def test_one_file_of_a_hub_data_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, content: str, column: str
) -> None:
    """With `data_files` that file alone is read, of whichever kind, and words that look like missing values stay."""
    (tmp_path / file).write_text(content)
    (tmp_path / "other.tar").write_bytes(b"no data")
    original = datasets.load_dataset

    def load_dataset(source: str, *args: object, **keywords: object) -> Dataset:
        assert "org/data" == source
        return original(str(tmp_path), *args, cache_dir=str(tmp_path / "cache"), **keywords)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert ["None", "NA"] == list(load_corpus("org/data", data_files=file, columns=[column])["anchor"])


def test_data_files_of_a_local_source_are_refused(tmp_path: Path) -> None:
    """A key that would be ignored is named."""
    write(tmp_path / "x.jsonl", ROWS)
    for source in (str(tmp_path / "x.jsonl"), "docstrings"):
        with pytest.raises(ValueError, match="got data_files='y.csv' of .* name the file in `source`"):
            load_corpus(source, data_files="y.csv")


@pytest.mark.parametrize("source", ["./data", "/nonesuch/data", "~/nonesuch-data", "folder/x.jsonl.gz", "X.CSV"])
def test_missing_path_is_not_taken_for_a_hub_name(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What looks like a path and does not exist is named; the hub is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(datasets, "load_dataset")
    with pytest.raises(FileNotFoundError, match=f"no such file or folder: .*source '{source}'"):
        load_corpus(source)


def test_home_and_variables_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~`, `$NAME` and `${NAME}` stand for their values."""
    write(tmp_path / "x.jsonl", ROWS)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GCBS_ST_DATA", str(tmp_path))
    for source in ("~/x.jsonl", "$GCBS_ST_DATA/x.jsonl", "${GCBS_ST_DATA}/x.jsonl"):
        assert EXPECTED == load_corpus(source).to_dict()


def test_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable and says to set it."""
    monkeypatch.delenv("GCBS_ST_DATA", raising=False)
    with pytest.raises(ValueError, match=r"variable GCBS_ST_DATA .* is not set: set it"):
        load_corpus("$GCBS_ST_DATA/x.jsonl")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, r"got 3 text columns \['t', 'u', 'v'\] of \['t', 'u', 'v', 'n'\].*`columns`"),
        ({"columns": ["t", "w"]}, r"got columns \['t', 'w'\].*\['t', 'u', 'v', 'n'\]; missing: \['w'\]"),
        ({"columns": ["t", "u"], "group": "w"}, r"missing: \['w'\]"),
        ({"columns": []}, r"got columns \[\], expected one or more of"),
        ({"columns": ["t", "t"]}, "expected each once"),
        ({"columns": ["t", "n"]}, r"got column 'n' of type Value\('int64'\), expected strings"),
        ({"columns": ["t"], "max_rows": 1}, "got max_rows=1, expected at least 2"),
    ],
)
def test_bad_choices_are_explained(tmp_path: Path, keywords: dict[str, Any], message: str) -> None:
    """A missing, ambiguous, repeated or non-text column is named, with those that exist."""
    source = write(tmp_path / "x.jsonl", [{"t": "T", "u": "U", "v": "V", "n": 1}] * 2)
    with pytest.raises(ValueError, match=message):
        load_corpus(source, **keywords)


def test_no_text_column_is_explained(tmp_path: Path) -> None:
    """A data set of numbers is refused with its columns."""
    with pytest.raises(ValueError, match=r"got 0 text columns \[\] of \['n'\]"):
        load_corpus(write(tmp_path / "x.jsonl", [{"n": 1}] * 2))


@pytest.mark.parametrize("rows", [ROWS[:1], [{"anchor": "a", "positive": ""}, *ROWS[:1]]])
def test_one_row_is_too_few(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """One usable row cannot make a batch."""
    with pytest.raises(ValueError, match=r"got 1 rows, need at least 2 .*check the file"):
        load_corpus(write(tmp_path / "x.jsonl", rows))


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.csv", "x.txt", "x.txt.gz"])
def test_empty_file_is_explained(tmp_path: Path, name: str) -> None:
    """A file without content has no rows."""
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    with pytest.raises(ValueError, match="got 0 rows, need at least 2"):
        load_corpus(str(tmp_path / name))


@pytest.mark.parametrize("name", ["x.xlsx", "x.parquet.gz", "x", ".txtfile"])
def test_unknown_ending_is_explained(tmp_path: Path, name: str) -> None:
    """A file of another kind is refused with the kinds that can be read."""
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"ends with one of \.jsonl, .*\.txt\.gz"):
        load_corpus(str(tmp_path / name))


def test_docstrings_of_a_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The word docstrings stands for the installed distributions, or those that are named."""
    numbers = ["one", "two", "three", "four", "five"]
    functions = [
        f'def f():\n    """Return the number {n}.\n\n    It is the {n} that is used in all the other tests.\n    """\n'
        for n in numbers
    ]
    info = tmp_path / "fake_docs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-docs\nVersion: 1\n")
    (info / "RECORD").write_text("fake.py,,\n")
    (tmp_path / "fake.py").write_text("\n".join(functions))
    monkeypatch.syspath_prepend(tmp_path)
    dataset = load_corpus("docstrings", distributions=["fake-docs"])
    assert [f"Return the number {n}." for n in sorted(numbers)] == list(dataset["anchor"])
    assert "It is the five that is used in all the other tests." == dataset["positive"][0]
    spread = load_corpus("docstrings", distributions=["fake-docs"], max_rows=3)
    assert [dataset[0], dataset[2], dataset[4]] == spread.to_list()
    (tmp_path / "fake.py").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="got 0 rows, need at least 2"):
        load_corpus("docstrings", distributions=["fake-docs"])


def test_streams_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An IterableDataset cannot be planned; a Dataset and a DatasetDict can."""
    data = Dataset.from_list(ROWS)
    stream = data.to_iterable_dataset()
    require_map_style(data)
    require_map_style(DatasetDict(train=data))
    for bad in (stream, IterableDatasetDict(train=stream), {"a": data, "b": stream}, None):
        with pytest.raises(TypeError, match=r"expected datasets\.Dataset: its rows are counted and read by number"):
            require_map_style(bad)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    with pytest.raises(TypeError, match="got IterableDataset"):
        load_corpus("user/stream")


def test_hash_sees_content_order_and_names() -> None:
    """Another text, row order, column order, column name or group gives another hash."""
    data = Dataset.from_list(ROWS)
    variants = [
        data,
        data.select([1, 0, 2, 3]),
        data.select(range(3)),
        data.rename_column("anchor", "query"),
        data.select_columns(["positive", "anchor", "image"]),
        data.remove_columns("image"),
        Dataset.from_list([{**ROWS[0], "anchor": "a 0p"}, *ROWS[1:]]),
    ]
    hashes = [corpus_hash(variant) for variant in variants]
    assert len(variants) == len(set(hashes))
    assert {16} == set(map(len, hashes))


@given(st.lists(st.text(), min_size=2, max_size=20), st.data())
def test_hash_does_not_see_chunks(texts: list[str], data: st.DataObject) -> None:
    """However the rows are split into Arrow chunks or selected, the same rows give the same hash."""
    whole = Dataset.from_dict({"anchor": texts})
    cut = data.draw(st.integers(1, len(texts) - 1))
    parts = [Dataset.from_dict({"anchor": part}) for part in (texts[:cut], texts[cut:])]
    backwards = Dataset.from_dict({"anchor": texts[::-1]}).select(range(len(texts))[::-1])
    assert corpus_hash(whole) == corpus_hash(concatenate_datasets(parts)) == corpus_hash(backwards)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.sampled_from("ijklmnopqrst")), min_size=5, max_size=30),
    st.integers(0, 9),
)
def test_no_text_is_on_both_sides(pairs: list[tuple[str, str]], seed: int) -> None:
    """Held-out texts occur in no training row, whichever column they are in, and the split is repeatable."""
    data = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
    try:
        train, held_out = split_held_out(data, 2, seed)
    except ValueError as error:
        assert "hold out fewer rows" in str(error)
        return
    held = {text for row in held_out.to_list() for text in row.values()}
    assert 2 == len(held_out)
    others = [row for row in data.to_list() if held.isdisjoint(row.values())]
    assert others == train.to_list()
    again = split_held_out(data, 2, seed)
    assert (train.to_list(), held_out.to_list()) == (again[0].to_list(), again[1].to_list())


def test_held_out_seed_and_group() -> None:
    """Another seed holds out other rows, and a group of strings is no text."""
    data = Dataset.from_list([{"anchor": f"a {i}", "positive": f"p {i}", "group": "g"} for i in range(100)])
    parts = [split_held_out(data, 10, seed) for seed in (0, 1)]
    assert [90, 90] == [len(train) for train, _ in parts]
    assert parts[0][1].to_list() != parts[1][1].to_list()


@pytest.mark.parametrize("rows", [-1, 0, 3, 4])
def test_held_out_rows_must_fit(rows: int) -> None:
    """At least one row is held out and two are left."""
    with pytest.raises(ValueError, match=f"got rows={rows} to hold out, expected 1 to 2 of 4 rows"):
        split_held_out(Dataset.from_list(ROWS), rows)
