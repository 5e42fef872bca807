"""Tests of ``run_host_tests.py`` with a checkout of a few tests, and of what it makes of results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import run_host_tests
from run_host_tests import CannotRun, compare, describe

SCRIPT = Path(run_host_tests.__file__)
CONFTEST = """
import pytest
from datasets import load_dataset
from sentence_transformers import SentenceTransformer

@pytest.fixture()
def model():
    return SentenceTransformer("sentence-transformers-testing/stsb-bert-tiny-safetensors")

@pytest.fixture()
def rows():
    return load_dataset("sentence-transformers/stsb")["train"].select(range(8))
"""
TRAINER = """
import pytest
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

def test_trains(model, rows, tmp_path):
    args = SentenceTransformerTrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to="none")
    trainer = SentenceTransformerTrainer(model, args, rows, loss=CosineSimilarityLoss(model))
    assert 2 == trainer.train().global_step
    assert hasattr(trainer, "planned_samplers") is hasattr(args, "planner")

@pytest.mark.parametrize("streaming", [False, True])
def test_trainer(model, rows, tmp_path, streaming):
    rows = rows.to_iterable_dataset() if streaming else rows
    args = SentenceTransformerTrainingArguments(str(tmp_path), max_steps=2)
    SentenceTransformerTrainer(model, args, rows, loss=MultipleNegativesRankingLoss(model))

def test_is_theirs():
    assert SentenceTransformerTrainer.__name__ == "SentenceTransformerTrainer"

def test_hub():
    SentenceTransformer("sentence-transformers-testing/not-made-here")

@pytest.mark.slow
def test_slow():
    pass
"""


@pytest.mark.slow
def test_new_differences_are_told_from_explained_ones(tmp_path):
    """Both trainers really are run: one difference is explained, one is new, and what has no model fails with both."""
    tests = tmp_path / "checkout" / "tests"
    (tests / "sentence_transformer").mkdir(parents=True)
    (tests / "conftest.py").write_text(CONFTEST)
    for folder in (tests, tests / "sentence_transformer"):
        (folder / "__init__.py").write_text("")
    (tests / "sentence_transformer" / "test_trainer.py").write_text(TRAINER)
    (tmp_path / "checkout" / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = "--strict-markers"\nmarkers = ["slow: slow"]\n'
    )
    summary_file = tmp_path / "summary.json"
    command = [sys.executable, str(SCRIPT), "--checkout", str(tests.parent), "--json", str(summary_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert 1 == done.returncode, done.stdout + done.stderr
    summary = json.loads(summary_file.read_text())
    assert {"passed": 4, "failed": 1, "skipped": 0} == summary["theirs"]
    assert {"passed": 2, "failed": 3, "skipped": 0} == summary["ours"]
    name = "tests/sentence_transformer/test_trainer.py::test_"
    assert [f"{name}is_theirs"] == summary["unexplained"]
    (explained,) = [one for one in summary["differences"] if one["reason"]]
    assert (f"{name}trainer[True]", True) == (explained["test"], "IterableDataset" in explained["error"])
    assert [f"{name}hub"] == [one["test"] for one in summary["fail with both"]]
    assert f"UNEXPLAINED: {name}is_theirs: passed with theirs, failed with ours" in done.stdout


def test_results_are_compared_by_test():
    """A test that did not run with ours differs too, and one that passes with ours alone is not explained away."""
    passed, failed = {"outcome": "passed", "message": ""}, {"outcome": "failed", "message": "why"}
    theirs = {
        "a": passed,
        "b": passed,
        "c": failed,
        "x::test_trainer[False-True]": passed,
        "y::test_trainer[True]": failed,
    }
    ours = {"a": passed, "c": failed, "x::test_trainer[False-True]": failed, "y::test_trainer[True]": passed}
    summary = compare(theirs, ours)
    assert ["b", "y::test_trainer[True]"] == summary["unexplained"]
    assert [{"test": "c", "error": "why"}] == summary["fail with both"]
    assert {"passed": 3, "failed": 2, "skipped": 0} == summary["theirs"]
    assert "1 differ: an IterableDataset is refused" in describe(summary)


def test_what_is_no_checkout_is_refused(tmp_path, capsys, monkeypatch):
    """A folder without the host's tests, and a tag that cannot be cloned, are mistakes with a way out."""
    with pytest.raises(CannotRun, match="is it a checkout of sentence-transformers"):
        run_host_tests.run(tmp_path, "ours", tmp_path, [])
    monkeypatch.setattr(run_host_tests, "REPOSITORY", str(tmp_path / "nothing"))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    assert 2 == run_host_tests.main()
    assert "give a checkout with --checkout" in capsys.readouterr().err
