"""Experiments that train on several sources, retrieval sets among them, choose by held-out pairs and score retrieval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, make_pairs, make_static_model

from gcbs_st.config import ConfigError, load_config, override
from gcbs_st.corpora.corpus import join_corpora, load_corpus
from gcbs_st.evaluation.retrieval import evaluate_retrieval
from gcbs_st.evaluation.retrieval_tasks import load_retrieval_tasks
from gcbs_st.experiments.comparison import Options, compare, select
from gcbs_st.experiments.data import load_data
from gcbs_st.experiments.dry_run import dry_run
from gcbs_st.experiments.experiment import run_experiment
from gcbs_st.experiments.training_run import dev_evaluator, initial_model, score, training_arguments
from gcbs_st.records.run_folder import read_runs
from gcbs_st.records.tables import experiment_table


def write(file: Path, rows: list) -> None:
    """Writes a file of one JSON object per line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_set(folder: Path, name: str, seed: int = 0) -> None:
    """A retrieval set: 30 training queries of two documents, 10 test queries of one, 60 documents."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=6)) for _ in range(60)]
    write(folder / f"{name}.corpus.jsonl", [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)])
    queries, judged = [], []
    for number in range(40):
        split, first = ("train", number) if number < 30 else ("test", number + 15)
        queries.append({"_id": f"q{number}", "text": " ".join(texts[first].split()[:3])})
        rows = (first, first + 30) if split == "train" else (first,)
        judged += [{"query_id": f"q{number}", "corpus_id": f"d{r}", "score": 1, "split": split} for r in rows]
    write(folder / f"{name}.queries.jsonl", queries)
    write(folder / f"{name}.qrels.jsonl", judged)


@pytest.fixture
def config_file(tmp_path):
    """An experiment on pairs and the training part of a retrieval set, that chooses by held-out pairs."""
    make_static_model().save(str(tmp_path / "start"))
    make_pairs(120).to_json(tmp_path / "pairs.jsonl")
    write_set(tmp_path / "retrieval", "toy")
    write_set(tmp_path / "retrieval", "other", seed=3)
    rng = np.random.default_rng(0)
    for name in ("STSBenchmark.dev", "STSBenchmark.test"):
        rows = [[" ".join(rng.choice(WORDS, size=4)) for _ in range(2)] for _ in range(20)]
        write(
            tmp_path / "sts" / f"{name}.jsonl",
            [{"sentence1": a, "sentence2": b, "score": i % 6} for i, (a, b) in enumerate(rows)],
        )
    file = tmp_path / "config.yaml"
    file.write_text(f"""
output: {tmp_path / "out"}
corpus:
  source: {tmp_path / "pairs.jsonl"}
  columns: [anchor, positive]
  held_out: 20
  also: [{{source: {tmp_path / "retrieval" / "toy"}, split: train}}]
model: {{name: {tmp_path / "start"}, static: true}}
evaluation:
  sts: {tmp_path / "sts"}
  retrieval: {{folder: {tmp_path / "retrieval"}, tasks: [toy, other]}}
  dev: heldout
train: {{num_train_epochs: 2, per_device_train_batch_size: 16, learning_rate: 1e-2, use_cpu: true, disable_tqdm: true}}
""")
    return file


# ---------------------------------------------------------------- rows


def test_a_retrieval_set_is_a_source_of_pairs(tmp_path):
    """Each query with each of its documents, of one split; ids can be groups; a score of 0 is no pair."""
    write_set(tmp_path, "toy")
    rows = load_corpus(str(tmp_path / "toy"), group="query_id")
    assert (60, ["anchor", "positive", "group"]) == (len(rows), rows.column_names)
    assert ["q0", "q0", "q1", "q1"] == rows["group"][:4]
    documents = [json.loads(line)["text"] for line in (tmp_path / "toy.corpus.jsonl").read_text().splitlines()]
    assert [documents[0], documents[30]] == rows["positive"][:2]
    assert rows["anchor"][0] == " ".join(documents[0].split()[:3])
    assert 10 == len(load_corpus(str(tmp_path / "toy"), split="test"))
    with pytest.raises(ValueError, match="no pair in the split 'dev' of .*toy.qrels.jsonl, only test, train"):
        load_corpus(str(tmp_path / "toy"), split="dev")
    qrels = tmp_path / "toy.qrels.jsonl"
    judged = [json.loads(line) for line in qrels.read_text().splitlines()]
    write(qrels, [{**judged[0], "score": 0}, *judged[1:]])
    assert 59 == len(load_corpus(str(tmp_path / "toy")))
    write(qrels, [{**judged[0], "corpus_id": "nowhere"}, *judged[1:]])
    with pytest.raises(ValueError, match="document 'nowhere', expected ids of the set"):
        load_corpus(str(tmp_path / "toy"))
    write(qrels, [{"query": "q0"}] * 3)
    with pytest.raises(ValueError, match="expected query_id, corpus_id, score among them"):
        load_corpus(str(tmp_path / "toy"))
    qrels.unlink()
    with pytest.raises(FileNotFoundError, match="no file .*toy.qrels.jsonl"):
        load_corpus(str(tmp_path / "toy"))


def test_sources_follow_each_other(tmp_path, config_file):
    """The rows of the further sources come last; held-out pairs are of all of them; groups stay apart."""
    data = load_data(load_config(config_file, ["corpus.held_out=0", "evaluation.dev=sts"]))
    first = load_corpus(str(tmp_path / "pairs.jsonl"))
    second = load_corpus(str(tmp_path / "retrieval" / "toy"))
    assert [*first["anchor"], *second["anchor"]] == list(data.train["anchor"])
    groups = [load_corpus(str(tmp_path / "retrieval" / name), group="query_id") for name in ("toy", "other")]
    joined = join_corpora(groups)["group"]
    assert 60 == len(set(joined)) and ["0 q0", "0 q0"] == joined[:2] and "1 q0" == joined[60]
    with pytest.raises(ValueError, match="expected the same of each"):
        join_corpora([first, groups[0]])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus.held_out=0"], r"^evaluation\.dev: heldout needs pairs that are kept back"),
        (["evaluation.dev=retrieval"], r"^evaluation\.dev: got 'retrieval', expected sts or heldout"),
        (["corpus.also=[{source: x, held_out: 3}]"], r"^corpus\.also: x has held_out or also of its own"),
        (["corpus.also=[{sauce: x}]"], r"^corpus\.also\[0\]\.sauce: unknown key"),
        (["corpus.also=[x]"], r"^corpus\.also\[0\]: got 'x', expected a mapping"),
        (["evaluation.retrieval={folder: x, task: [a]}"], r"^evaluation\.retrieval\.task: unknown key"),
    ],
)
def test_mistakes_are_named(config_file, overrides, message):
    """Each by its key."""
    with pytest.raises(ConfigError, match=message):
        load_data(load_config(config_file, overrides))


# ---------------------------------------------------------------- runs


def test_an_experiment_is_scored_on_retrieval_and_chooses_by_held_out_pairs(config_file):
    """Scores of all kinds beside each other, the best checkpoint by the held-out MRR, a table of the means."""
    overrides = [
        "train.eval_strategy=steps", "train.eval_steps=5", "train.save_strategy=steps", "train.save_steps=5",
        "train.load_best_model_at_end=true", "train.metric_for_best_model=eval_heldout_mrr",
    ]  # fmt: skip
    config = load_config(config_file, overrides)
    records = run_experiment(config)
    record = records["gcbs"]
    tasks = load_retrieval_tasks(config.evaluation.retrieval.folder)
    from sentence_transformers import SentenceTransformer

    saved = SentenceTransformer(str(Path(config.output) / "gcbs" / "model"), device="cpu")
    for name, value in evaluate_retrieval(saved, tasks).items():
        assert pytest.approx(value, abs=1e-2) == record[name]
    assert {"STSBenchmark-dev", "STSBenchmark", "heldout_mrr", "retrieval_avg"} <= set(record)
    log = json.loads((Path(config.output) / "gcbs" / "log_history.json").read_text())
    curve = {entry["step"]: entry["eval_heldout_mrr"] for entry in log if "eval_heldout_mrr" in entry}
    assert max(curve, key=curve.get) == record["best_step"]
    assert "retrieval mean nDCG@10" in experiment_table(records)


def test_a_comparison_goes_by_held_out_pairs(config_file, tmp_path, monkeypatch):
    """Curve, times and differences; what is finished is kept, and its curve is read back under its name."""
    config = load_config(config_file)
    lines = []
    content = compare(config, Options(tmp_path / "runs", ("random", "bisect"), (1,), dev_steps=5), lines.append)
    record = content["runs"]["bisect"]["1"]
    assert ("heldout_mrr", "heldout_mrr") == (content["dev_metric"], record["dev_metric"])
    assert record["dev_curve"][-1][2] == record["heldout_mrr"]
    assert {"toy_ndcg@10", "other_recall@100", "retrieval_avg", "avg"} <= set(content["arms"]["bisect"]["scores"])
    again, scored = [], []
    with monkeypatch.context() as patch:
        patch.setattr("gcbs_st.experiments.comparison.initial_model", scored.append)
        repeated = compare(config, Options(tmp_path / "runs", ("random", "bisect"), (1,), dev_steps=5), again.append)
    assert all("finished before" in line for line in again)
    # The untrained model is not scored again either, unless it or the tasks are others.
    assert ([], content["before"]) == (scored, repeated["before"])
    shorter = override(config, ["model.max_seq_length=3"])
    changed = compare(shorter, Options(tmp_path / "runs", ("random",), (1,), dev_steps=5), again.append)
    assert changed["before"] != content["before"]
    for run in read_runs([tmp_path / "runs"]).runs:
        assert any("eval_heldout_mrr" in entry for entry in run.log)
        assert not any("eval_sts_STSBenchmark-dev_spearman" in entry for entry in run.log)


def test_a_selection_by_held_out_pairs_reads_no_test(config_file, tmp_path, monkeypatch):
    """Neither retrieval nor STS tests are even opened."""
    import gcbs_st.experiments.tasks as tasks

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a test was read")

    monkeypatch.setattr(tasks, "load_retrieval_tasks", refuse)
    config = load_config(config_file)
    table = select(config, Options(tmp_path / "s", ("random",), (1,)), ["train.learning_rate=0.01,0.02"], print)
    assert "heldout_mrr" in table and 2 == table.count("random")


@pytest.mark.parametrize("here", [True, False], ids=["data here", "data elsewhere"])
def test_a_dry_run_scores_retrieval_too(config_file, tmp_path, here):
    """On a few of its queries, or on synthetic ones."""
    overrides = [] if here else ["evaluation.retrieval.folder=/no/such/folder", "corpus.also=[{source: /no/such/set}]"]
    report = dry_run(load_config(config_file, overrides))
    assert "retrieval mean nDCG@10" in report
    assert "retrieval tasks" in report
    assert ("NOT FOUND" in report) is not here


def test_scores_under_autocast_are_nearly_the_same(config_file, monkeypatch):
    """Of bfloat16 in the encoder, and not of float32; refused where checkpoints are scored."""
    config = load_config(config_file)
    data = load_data(config)
    model, seen = initial_model(config), []

    def look(*args, **kwargs):
        seen.append(torch.is_autocast_enabled("cpu"))
        return encode(*args, **kwargs)

    encode = model.encode
    monkeypatch.setattr(model, "encode", look)
    exact = score(model, config, data)
    assert not any(seen) and seen
    seen.clear()
    fast = override(config, ["evaluation.bf16=true"])
    near = score(model, fast, data)
    assert all(seen) and seen
    assert exact == {name: pytest.approx(value, abs=5) for name, value in near.items()}
    args = training_arguments(
        override(fast, ["train.eval_strategy=steps", "train.eval_steps=2"]), next(iter(fast.runs))
    )
    with pytest.raises(ConfigError, match="evaluation.bf16"):
        dev_evaluator(fast, args, data)
