"""`embed`, `plan` and `export` one after the other, the page that shows them, and how mistakes are explained."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pairs, make_static_model
from datasets import DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from test_docs import DOCS, example_of

from gcbs_st.batches.export import read_manifest, shard_files
from gcbs_st.cli import main
from gcbs_st.corpora.corpus import load_corpus, read_rows

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with pairs.jsonl of 50 rows, and a small model where the page names a large one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    make_static_model().save(MODEL)
    make_pairs(50).add_column("id", [None, *range(49)]).to_json("pairs.jsonl")
    return tmp_path


def run(line: str) -> int:
    """A line of the page."""
    return main(line.split()[1:])


def page_lines() -> list[str]:
    """The commands of the page."""
    return (DOCS / "export.md").read_text().split("```bash\n")[1].split("```")[0].splitlines()


def test_the_three_commands_of_the_page(folder, capsys):
    """Each prints one JSON line; what they leave is the dataset in the order of the plan, its batches shuffled."""
    records = []
    for line in page_lines():
        assert 0 == run(line), capsys.readouterr().err
        shown = capsys.readouterr()
        records.append(json.loads(shown.out))
    assert "2 of 50 rows are in no whole batch of 8: left out." in shown.err
    assert (50, 16, "float16", ["anchor", "positive"]) == tuple(
        records[0][key] for key in ("rows", "dimensions", "dtype", "columns")
    )
    model, pairs = SentenceTransformer(MODEL, device="cpu"), make_pairs(50)
    for file, column in (("A.npy", "anchor"), ("P.npy", "positive")):
        expected = model.encode(list(pairs[column]), normalize_embeddings=True)
        np.testing.assert_allclose(np.load(file), expected, atol=1e-3)
    order, manifest = np.load("order.npy"), read_manifest("batches", check_contents=True)
    assert (48, 6, 8, 2, 1) == tuple(
        manifest[key] for key in ("rows", "batches", "batch_size", "left_out", "shuffle_seed")
    )
    assert {"anchor": "string", "positive": "string", "id": "int64", "row_id": "int64", "batch_id": "int64"} == (
        manifest["columns"]
    )
    rows = read_rows(shard_files("batches")[0])
    assert sorted(order[:48].reshape(-1, 8).tolist()) == sorted(np.reshape(rows["row_id"], (-1, 8)).tolist())
    assert [pairs["anchor"][i] for i in rows["row_id"]] == list(rows["anchor"])
    # Once more: the same export is refused, and replaced if asked for.
    assert 2 == run(page_lines()[2])
    assert "holds this very export already" in capsys.readouterr().err
    assert 0 == run(page_lines()[2] + " --overwrite")


def test_the_pages_example_trains_on_the_planned_batches(folder, monkeypatch, capsys):
    """Word by word: each step of the host's own trainer sees one planned batch, in the order of the files."""
    for line in page_lines():
        assert 0 == run(line)
    seen, original = [], SentenceTransformerTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **options):
        seen.append({name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)})
        return original(self, model, inputs, *args, **options)

    monkeypatch.setattr(SentenceTransformerTrainer, "compute_loss", compute_loss)
    (folder / "example_of_export.py").write_text(example_of(DOCS / "export.md"))
    monkeypatch.syspath_prepend(str(folder))
    importlib.import_module("example_of_export")  # as a module, since the host pickles its arguments
    rows = read_rows(shard_files("batches")[0])
    model = SentenceTransformer(MODEL, device="cpu")
    epochs, batches = 3, 6  # three epochs are the host's default
    assert epochs * batches == len(seen)
    for step, inputs in enumerate(seen):
        first = step % batches * 8
        block = rows[first : first + 8]
        assert [step % batches] * 8 == block["batch_id"]
        for column in ("anchor", "positive"):
            expected = model.preprocess(block[column])
            for name, value in expected.items():
                if torch.is_tensor(value):
                    torch.testing.assert_close(inputs[f"{column}_{name}"].cpu(), value)
        assert not [name for name in inputs if name.startswith(("id_", "row_id", "batch_id"))]


def test_every_kind_of_dataset_is_the_same(folder, capsys):
    """A file of lines, packed or not, parquet, csv, or a folder saved by datasets, with a split or not."""
    rows = read_rows("pairs.jsonl").remove_columns("id")
    rows.to_json("p.jsonl.gz", compression="gzip")
    rows.to_parquet("p.parquet")
    rows.to_csv("p.csv")
    rows.save_to_disk("saved")
    DatasetDict({"test": rows, "train": rows.select([0, 1])}).save_to_disk("splits")
    np.save("order.npy", np.arange(50)[::-1])
    found = set()
    for source in ("p.jsonl.gz", "p.parquet", "p.csv", "saved", "splits --split test"):
        assert 0 == run(f"gcbs-st export --dataset {source} --order order.npy --batch-size 5 --out b --overwrite")
        found.add(json.loads(capsys.readouterr().out.splitlines()[-1])["dataset"])
        words = f"--dataset {source} --model {MODEL} --anchors {source[:4]}.A.npy --positives {source[:4]}.P.npy"
        assert 0 == run(f"gcbs-st embed {words} --dtype float32 --device cpu")
    assert 1 == len(found)
    assert 1 == len({Path(file).read_bytes() for file in folder.glob("*.A.npy")})


def test_a_record_and_the_planner(folder, capsys):
    """The manifest says which planner it was, where the line of `plan` is kept."""
    Path("record.json").write_text('{"planner": "gcbs", "seconds": 1}')
    np.save("order.npy", np.arange(50))
    line = "gcbs-st export --dataset pairs.jsonl --order order.npy --batch-size 5 --out b --rows-per-shard 12"
    assert 0 == run(f"{line} --record record.json")
    manifest = read_manifest("b")
    assert ("gcbs", "pairs.jsonl", [10] * 5) == (
        manifest["planner"],
        manifest["source"],
        [shard["rows"] for shard in manifest["shards"]],
    )


def test_the_last_plan_of_a_run(folder, monkeypatch, capsys):
    """Its rows are those that it trained on, and a corpus that has changed is refused."""
    config = {
        "output": "runs",
        "corpus": {"source": "pairs.jsonl", "group": "id"},
        "model": {"name": MODEL, "static": True},
        "train": {"per_device_train_batch_size": 8, "num_train_epochs": 2, "use_cpu": True, "report_to": "none"},
        "runs": {"bisect": {"planner": "bisect"}},
    }
    make_run(folder / "run", config)
    assert 0 == run("gcbs-st export --run run --out b")
    rows, manifest = load_corpus("pairs.jsonl", group="id"), read_manifest("b")
    assert ("bisect", "run", 12, {"clusters_per_batch": 1}) == tuple(
        manifest[key] for key in ("planner", "source", "step", "planner_options")
    )
    found = read_rows(shard_files("b")[0])
    assert ORDER[1].tolist() == list(found["row_id"])
    assert [rows[int(i)] for i in ORDER[1]] == found.select_columns(["anchor", "positive", "group"]).to_list()
    capsys.readouterr()
    assert 2 == run("gcbs-st export --run run --batch-size 8 --out c")
    assert "--batch-size does not go with --run" in capsys.readouterr().err
    make_pairs(50, seed=1).add_column("id", range(50)).to_json("pairs.jsonl")
    assert 2 == run("gcbs-st export --run run --out c")
    assert "was trained on a corpus of hash" in capsys.readouterr().err
    for file in (folder / "run" / "plans").iterdir():
        file.unlink()
    assert 2 == run("gcbs-st export --run run --out c")
    assert "keeps no plans" in capsys.readouterr().err
    assert not Path("c").exists()


ORDER = [np.random.default_rng(seed).permutation(50)[:48] for seed in (0, 1)]


def make_run(folder, config) -> None:
    """What a finished run leaves, with two plans."""
    import yaml

    from gcbs_st.files import write_arrays, write_json
    from gcbs_st.rows.training_set import corpus_hash

    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    trained = load_corpus("pairs.jsonl", group="id").remove_columns("group")
    record = {"run": "bisect", "seed": 42, "steps": 12, "plans": 2, "seconds_training": 1.0, "versions": {}}
    record["corpus_hash"] = corpus_hash(trained)
    write_json(folder / "results.json", record)
    write_json(folder / "log_history.json", [])
    for step, order in zip((0, 12), ORDER, strict=True):
        sampler = {
            "name": "", "drawn": 0, "epoch": 0, "plan_count": 1, "batch_size": 8, "rows": 50, "repeats": False
        }  # fmt: skip
        facts = {"step": step, "planner": "bisect", "options": {"clusters_per_batch": 1}, "samplers": [sampler]}
        write_arrays(folder / "plans" / f"step-{step:08d}.npz", {"order_0": order}, facts)


EMBED = f"gcbs-st embed --dataset pairs.jsonl --model {MODEL} --anchors A.npy --positives P.npy"
EXPORT = "gcbs-st export --dataset pairs.jsonl --order order.npy --batch-size 8 --out b"


@pytest.mark.parametrize(("line", "message"), [
    (f"{EMBED} --columns anchor,text", "got the column 'text', expected one of anchor, positive, id"),
    (f"{EMBED} --columns anchor,id", "column 'id' holds int64, expected texts"),
    (f"{EMBED} --columns anchor,positive,anchor", "--columns: got anchor,positive,anchor, expected two"),
    (f"{EMBED} --dtype int8", "--dtype: got 'int8', expected one of float16, float32"),
    (f"{EMBED} --batch-size 0", "--batch-size: got 0"),
    (f"{EMBED} --model ./no/model", "the folder ./no/model does not exist"),
    (f"{EMBED} --model package:no-such-model", "the distribution 'no-such-model' is not installed"),
    (f"{EMBED} --dataset no.jsonl", "no such file or folder: no.jsonl"),
    (f"{EMBED} --dataset splits --split dev", "got split 'dev' of 'splits', expected one of"),
    (f"{EMBED} --positives A.npy", "got the file A.npy for anchors and for positives"),
    (f"{EXPORT} --order no.npy", "No such file or directory: 'no.npy'"),
    (f"{EXPORT} --order pairs.jsonl", "--order: pairs.jsonl is not a whole .npy file"),
    (f"{EXPORT} --order both.npz", "--order: both.npz holds several arrays"),
    (f"{EXPORT} --batch-size 0", "--batch-size: got 0, expected at least 1"),
    (f"{EXPORT} --batch-size 99", "got 50 rows, expected at least one batch of 99"),
    (f"{EXPORT} --rows-per-shard 0", "--rows-per-shard: got 0"),
    (f"{EXPORT} --order long.npy", "got rows 0..50, expected 0..49, since the dataset has 50 rows"),
    (f"{EXPORT} --record pairs.jsonl", "pairs.jsonl is damaged"),
    (f"{EXPORT} --out splits", "splits is there and is no export"),
    ("gcbs-st export --order order.npy --batch-size 8 --out b", "--dataset is missing"),
    ("gcbs-st export --order order.npy --dataset pairs.jsonl --out b", "--batch-size is missing"),
    ("gcbs-st export --run no --out b", "--run: no is not there"),
])  # fmt: skip
def test_mistakes_are_explained_in_one_line(folder, capsys, line, message):
    """Exit code 2, the reason on stderr, nothing written."""
    np.save("order.npy", np.arange(50))
    np.save("long.npy", np.arange(51))
    np.savez("both.npz", a=np.arange(5))
    DatasetDict({"train": make_pairs(10)}).save_to_disk("splits")
    capsys.readouterr()
    before = {path for path in folder.iterdir() if path.name != "cache"}
    assert 2 == run(line)
    shown = capsys.readouterr()
    assert message in shown.err.splitlines()[-1]
    assert "" == shown.out
    assert before == {path for path in folder.iterdir() if path.name != "cache"}


def test_a_full_disk_is_a_failure_and_no_mistake(folder, capsys, monkeypatch):
    """Exit code 1, and nothing is left."""
    import pyarrow.parquet as pq

    def refuse(self, *args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", refuse)
    np.save("order.npy", np.arange(50))
    assert 1 == run(EXPORT)
    assert "No space left on device" in capsys.readouterr().err
    assert [] == [path.name for path in folder.iterdir() if path.name.startswith((".", "b"))]
