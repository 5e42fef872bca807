"""The training script that advice writes: it reads what was advised on, and it trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from conftest import make_pairs, make_static_model
from datasets import DatasetDict

from gcbs_st.advice.advise import advise
from gcbs_st.advice.script import training_script

B = 8


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def advice_on(rows, columns=("anchor", "positive"), **given):
    """Advice on rows for a small static model."""
    return advise(rows, columns, make_static_model, batch_size=B, seconds=1, **given)


def test_it_trains_as_recommended(folder):
    """In a process of its own: rows without a text are left out, a checkpoint holds the plan, the model is saved."""
    model = make_static_model()
    model.save("model")
    rows = make_pairs(200).add_column("image", [i // 2 for i in range(200)])
    rows = rows.add_column("note", ["x"] * 200)
    rows = datasets.concatenate_datasets([rows, rows.select([0]).map(lambda row: {"positive": " "})])
    rows.to_json("my pairs.jsonl")
    advice = advice_on(rows, group_column="image")
    script = training_script(advice, "my pairs.jsonl", split="train", name=None, model="model")
    Path("train.py").write_text(script)
    done = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr[-2000:]
    assert "group_column" in script
    (checkpoint,) = Path("out").glob("checkpoint-*")
    assert 25 == json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    assert (checkpoint / "gcbs_plan.npz").is_file()
    assert Path("out/final/modules.json").is_file()


def write(kind: str) -> str:
    """Writes 200 pairs, and returns what a user calls them."""
    pairs = make_pairs(200)
    pairs = pairs.map(lambda row, i: {"anchor": "None" if i == 0 else row["anchor"]}, with_indices=True)
    writers = {
        "p.jsonl": pairs.to_json,
        "p.csv": pairs.to_csv,
        "p.tsv": lambda file: pairs.to_csv(file, sep="\t"),
        "p.parquet": pairs.to_parquet,
        "p.jsonl.gz": lambda file: pairs.to_json(file, compression="gzip"),
        "saved": pairs.save_to_disk,
        "splits": lambda folder: DatasetDict({"train": pairs, "dev": pairs}).save_to_disk(folder),
    }
    writers[kind](kind)
    return kind


@pytest.mark.parametrize("kind", ["p.jsonl", "p.csv", "p.tsv", "p.parquet", "p.jsonl.gz", "saved", "splits"])
def test_it_reads_what_was_advised_on(folder, kind):
    """Each kind of source, in the words of the host's users; the text "None" is a text."""
    script = training_script(advice_on(make_pairs(200)), write(kind), split="dev", name=None, model="m")
    line = next(line for line in script.splitlines() if "dataset = load" in line)
    scope = dict(vars(datasets))
    exec(line.strip(), scope)
    assert (200, "None") == (len(scope["dataset"]), scope["dataset"]["anchor"][0])
    compile(script, "train.py", "exec")


def test_names_of_the_hub():
    """With their configuration and split."""
    script = training_script(advice_on(make_pairs(200)), "org/name", split="dev", name="triplet", model="m")
    assert 'dataset = load_dataset("org/name", "triplet", split="dev")' in script


def test_what_cannot_be_written(folder):
    """Sources of the bench, files of other kinds, and advice to change nothing."""
    advice = advice_on(make_pairs(200))
    Path("p.xml").write_text("x")
    for source in ("docstrings", "p.xml", "/no/such/set"):
        with pytest.raises(ValueError, match="--script: got .*expected"):
            training_script(advice, source, split="train", name=None, model="m")
    with pytest.raises(ValueError, match="keep random batches"):
        training_script(advice_on(make_pairs(20)), "p.jsonl", split="train", name=None, model="m")
