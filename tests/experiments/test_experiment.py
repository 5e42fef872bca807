"""The main job: paired runs from one configuration, their folders, and their resumption."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from gcbs_st.config import ConfigError, load_config
from gcbs_st.evaluation.sts import evaluate_sts
from gcbs_st.experiments.data import load_data
from gcbs_st.experiments.experiment import run_experiment
from gcbs_st.experiments.training_run import training_arguments
from gcbs_st.files import write_json
from gcbs_st.records.tables import experiment_table, markdown_table

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train_sts.py"


@pytest.fixture
def config_file(tmp_path, static_model, pairs):
    """A whole experiment on a tiny static model: pairs, STS files, two runs."""
    static_model.save(str(tmp_path / "start"))
    pairs.to_json(tmp_path / "pairs.jsonl")
    sts = tmp_path / "sts"
    sts.mkdir()
    texts = pairs["anchor"][:12]
    for name in ("STSBenchmark.test", "STSBenchmark.dev", "STS12"):
        rows = [{"sentence1": texts[i], "sentence2": texts[(i * 5 + 1) % 12], "score": i % 6} for i in range(12)]
        (sts / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "config.yaml"
    file.write_text(f"""
output: {tmp_path / "out"}
corpus: {{source: {tmp_path / "pairs.jsonl"}, held_out: 20}}
model: {{name: {tmp_path / "start"}, static: true, sparse_gradients: true}}
evaluation: {{sts: {sts}}}
train:
  num_train_epochs: 2
  per_device_train_batch_size: 16
  learning_rate: 1e-2
  max_grad_norm: 0
  seed: 3
  save_steps: 5
  disable_tqdm: true
  use_cpu: true
""")
    return file


def test_runs_are_paired_and_write_their_folders(config_file):
    """Both runs start from the same scores, take the same steps, and leave config, results and model."""
    config = load_config(config_file)
    records = run_experiment(config)
    assert ["before", "random", "gcbs"] == list(records)
    assert records["random"]["steps"] == records["gcbs"]["steps"] > 0
    assert records["random"]["corpus_hash"] == records["gcbs"]["corpus_hash"] == load_data(config).corpus_hash
    assert (0, 2) == (records["random"]["plans"], records["gcbs"]["plans"])
    assert {"STSBenchmark", "STSBenchmark-dev", "STS12", "avg", "heldout_mrr"} <= set(records["before"])
    for name in ("random", "gcbs"):
        folder = Path(config.output) / name
        assert records[name] == json.loads((folder / "results.json").read_text())
        assert [name] == list(load_config(folder / "config.yaml").runs)
        assert 16 == SentenceTransformer(str(folder / "model"), device="cpu").encode("a").shape[0]
    assert records == json.loads((Path(config.output) / "results.json").read_text())


def test_a_run_repeats_itself(config_file):
    """The same configuration gives the same scores; another seed gives others."""
    timeless = [
        {
            key: value
            for key, value in run_experiment(load_config(config_file, overrides))["gcbs"].items()
            if "seconds" not in key
        }
        for overrides in ([], [], ["train.seed=4"])
    ]
    assert timeless[0] == timeless[1]
    assert timeless[0]["train_loss"] != timeless[2]["train_loss"]


def test_resume_keeps_finished_runs_and_continues_the_interrupted_one(config_file, monkeypatch):
    """With resume a finished run is not run again, and an interrupted one goes on from its checkpoint."""
    config = load_config(config_file)
    whole = run_experiment(config)
    folder = Path(config.output) / "gcbs"
    (folder / "results.json").unlink()  # as if killed before its end; checkpoints are still there
    import gcbs_st.experiments.experiment as experiment

    ran = []
    original = experiment.run
    monkeypatch.setattr(experiment, "run", lambda *args, **kwargs: ran.append(args[1]) or original(*args, **kwargs))
    again = run_experiment(config, resume=True)
    assert ["gcbs"] == ran
    scores = ("STSBenchmark", "STS12", "heldout_mrr", "steps", "plans")
    assert [whole["gcbs"][key] for key in scores] == [again["gcbs"][key] for key in scores]


def test_resume_does_not_keep_a_run_of_another_configuration(config_file, monkeypatch):
    """A finished run counts only if it is the run that is asked for."""
    run_experiment(load_config(config_file))
    import gcbs_st.experiments.experiment as experiment

    ran = []
    original = experiment.run
    monkeypatch.setattr(experiment, "run", lambda *args, **kwargs: ran.append(args[1]) or original(*args, **kwargs))
    run_experiment(load_config(config_file, ["train.learning_rate=0.02"]), resume=True)
    assert ["random", "gcbs"] == ran


def test_the_best_checkpoint_by_sts_b_dev_is_kept(config_file, bert_folder, tmp_path):
    """Training that ends worse than it was gives the model of the best step, scored and saved without training head."""
    config = load_config(
        config_file,
        [
            f"model={{name: {bert_folder}, head: training}}",
            "runs={gcbs: {planner: gcbs}}",
            "train={max_steps: 6, per_device_train_batch_size: 16, learning_rate: 0.05, warmup_steps: 0, seed: 3, "
            "eval_strategy: steps, eval_steps: 1, save_strategy: steps, save_steps: 1, load_best_model_at_end: true, "
            "metric_for_best_model: eval_sts_STSBenchmark-dev_spearman, disable_tqdm: true, use_cpu: true}",
        ],
    )
    # Gold scores that the untrained model meets, so that training can only lose.
    dev = tmp_path / "sts" / "STSBenchmark.dev.jsonl"
    rows = [json.loads(line) for line in dev.read_text().splitlines()]
    start = SentenceTransformer(str(bert_folder), device="cpu")
    first, second = (start.encode([row[f"sentence{i}"] for row in rows], normalize_embeddings=True) for i in (1, 2))
    golden = [{**row, "score": float(a @ b)} for row, a, b in zip(rows, first, second, strict=True)]
    dev.write_text("".join(json.dumps(row) + "\n" for row in golden))
    record = run_experiment(config)["gcbs"]
    folder = Path(config.output) / "gcbs"
    history = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    metric = "eval_sts_STSBenchmark-dev_spearman"
    scores = {entry["step"]: entry[metric] for entry in history if metric in entry}
    assert [1, 2, 3, 4, 5, 6] == list(scores)
    best = max(scores, key=scores.get)
    assert scores[best] > scores[6]  # otherwise this test could not fail
    assert (best, pytest.approx(scores[best], abs=1e-3)) == (record["best_step"], record["STSBenchmark-dev"])
    saved = SentenceTransformer(str(folder / "model"), device="cpu")
    assert ["Transformer", "Pooling"] == [type(module).__name__ for module in saved]
    tasks = load_data(config).tasks
    assert pytest.approx(scores[best], abs=1e-2) == evaluate_sts(saved, tasks)["STSBenchmark-dev"]


def test_evaluation_during_training_needs_the_dev_task(config_file):
    """The best checkpoint is never chosen on a test."""
    overrides = ["evaluation.splits=[test]", "train.eval_strategy=epoch"]
    with pytest.raises(ConfigError, match="'epoch', but .* has no STSBenchmark-dev; add dev to evaluation.splits"):
        run_experiment(load_config(config_file, overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", r"^train\.learning_rat: unknown key; expected a field of GCBSTrainingArguments"),
        ("train.output_dir=x", r"^train\.output_dir: unknown key"),
        ("runs.gcbs.plannner=gcbs", r"^runs\.gcbs\.plannner: unknown key"),
        ("runs.gcbs.planner=gbcs", r"run gcbs\): planner: got 'gbcs', expected one of .*gcbs"),
        ("train.replan_steps=-1", r"replan_steps: got -1, expected 0"),
        ("train.max_grad_norm=1", r"^train\.max_grad_norm: set it to 0; the sparse gradients"),
    ],
)
def test_training_mistakes_are_found_before_anything_runs(config_file, override, message):
    """Fields of the training arguments are checked with their path, before data or model are loaded."""
    config = load_config(config_file, [override])
    with pytest.raises(ConfigError, match=message):
        [training_arguments(config, name) for name in config.runs]
    with pytest.raises(ConfigError, match=message):
        run_experiment(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.name=NoLoss", "loss.name: got 'NoLoss', expected one of .*MultipleNegativesRankingLoss"),
        ("loss.options={bogus: 1}", "loss.options: .*bogus"),
        ("evaluation.sts=/not/here", "/not/here"),
        ("corpus.source=/not/here.jsonl", "/not/here.jsonl"),
        ("corpus.columns=[anchor, missing]", "missing"),
        ("model.name=/not/here", "/not/here does not exist"),
    ],
)
def test_the_script_explains_mistakes_in_one_line(config_file, override, message, capsys):
    """Exit code 2, the reason on stderr, no traceback, nothing on stdout."""
    spec = importlib.util.spec_from_file_location("train_sts_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert 2 == script.main(["--config", str(config_file), "--set", override])
    shown = capsys.readouterr()
    assert re.search(message, shown.err)
    assert "" == shown.out
    assert "Traceback" not in shown.err


def test_the_script_prints_a_table_and_writes_json(config_file, tmp_path):
    """The command line as a user types it."""
    result = subprocess.run(
        [sys.executable, SCRIPT, "--config", config_file, "--set", "train.num_train_epochs=1", "--json", tmp_path / "r.json"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert 0 == result.returncode, result.stderr[-2000:]
    assert ["before", "random", "gcbs"] == list(json.loads((tmp_path / "r.json").read_text()))
    rows = [line.split("|")[1].strip() for line in result.stdout.splitlines() if line.startswith("|")]
    assert ["batches", "before training", "random", "gcbs"] == [rows[0], *rows[2:]]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    """What cannot be written leaves the old file, and no temporary one."""
    file = tmp_path / "results.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert {"a": 1} == json.loads(file.read_text())
    assert [file] == list(tmp_path.iterdir())


def test_tables_align_and_leave_out_what_no_run_has():
    """Columns that no record has are left out, as is the mean of a single task."""
    assert "| a |  b |\n|---|---:|\n| x | 10 |" == markdown_table(["a", "b"], [["x", "10"]])
    table = experiment_table(
        {"before": {"STSBenchmark": 50.0, "avg": 50.0}, "gcbs": {"STSBenchmark": 60.0, "avg": 60.0}}
    )
    assert ["batches", "STS-B test"] == [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
