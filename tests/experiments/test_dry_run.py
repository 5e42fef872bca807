"""The dry run: every configuration is built, trained for two steps and priced, without network."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoConfig, AutoModel, BertConfig, DistilBertConfig, ModernBertConfig

import gcbs_st.experiments.dry_run
from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.config import load_config, packaged_configs
from gcbs_st.embeddings.encode import encode_rows
from gcbs_st.experiments.cost import _parameters, architecture, cost_table, needs, schedule
from gcbs_st.experiments.dry_run import small_config

ROOT = Path(__file__).parents[2]
CONFIGS = list(packaged_configs().values())


@pytest.fixture
def dry_run(monkeypatch, tmp_path, capsys):
    """A function that runs the script as a user without data, hub or network; its exit code, stdout and stderr."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("network used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("GCBS_ST_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the script sets it as well; this one is undone
    monkeypatch.chdir(tmp_path)
    # Model cards are no part of what is tried, and would be made a hundred times.
    monkeypatch.setattr(SentenceTransformer, "_create_model_card", lambda *_, **__: None)
    spec = importlib.util.spec_from_file_location("train_sts_script", ROOT / "scripts" / "train_sts.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(config: Path, *options: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = script.main(["--config", str(config), "--dry-run", *options])
        return code, *capsys.readouterr()

    return run


def rows_of(table: str) -> list[list[str]]:
    """The cells of all Markdown tables in a text."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_every_configuration_runs_dry(config, dry_run, tmp_path):
    """Each run takes two steps and is priced; nothing is fetched, and nothing is left in the output folder."""
    code, out, err = dry_run(config)
    assert 0 == code, err[-2000:]
    runs = load_config(config).runs
    taken = {row[0]: row for row in rows_of(out.split("The full run needs:")[0])}
    steps = taken["batches"].index("steps")
    assert {name: "2" for name in runs} == {name: taken[name][steps] for name in runs}
    needed = re.findall(
        r"^- (model|training rows|STS tasks|retrieval tasks|code search \w+) .+: .+$", out, flags=re.MULTILINE
    )
    loaded = load_config(config)
    code = loaded.evaluation.code_search
    parts = {"STS tasks": True, "retrieval tasks": loaded.evaluation.retrieval is not None}
    if code is not None:
        named = {"dev": code.dev, "test": code.test, "functions": code.functions, "CoSQA": code.cosqa}
        parts = {f"code search {name}": part for name, part in named.items()}
    sources = ["training rows"] * (1 + len(loaded.corpus.also))
    assert ["model", *sources, *(name for name, part in parts.items() if part)] == needed
    assert "Cost of the full run" in out
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind", "columns"),
    [
        ("papers/simcse_unsup_bert_base", "bert", 2),
        ("papers/simcse_sup_roberta_large", "roberta", 3),
        ("papers/cosqa_unixcoder", "roberta", 3),
    ],
)
def test_the_stand_in_is_like_the_real_thing(name, kind, columns, tmp_path):
    """Same architecture, with dropout, head and as many columns; planned again in mid-run."""
    full = load_config(name)
    small = small_config(full, tmp_path)
    shape = AutoConfig.from_pretrained(small.model.name)
    assert (kind, True) == (shape.model_type, shape.hidden_dropout_prob > 0)
    assert (full.model.head, full.model.pooling, full.loss) == (small.model.head, small.model.pooling, small.loss)
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert columns == len(row)
    assert (columns == 2) == (row["anchor"] == row["positive"])
    assert (1, 2) == (small.train["replan_steps"], small.train["max_steps"])


def test_without_the_packaged_sts_b_pairs_are_made_up(monkeypatch, tmp_path):
    """A machine without any STS data runs dry as well, with every split that the configuration names."""

    def absent(source, *, splits):
        raise ImportError("not installed")

    monkeypatch.setattr(gcbs_st.experiments.dry_run, "load_sts_tasks", absent)
    small_config(load_config("quickstart"), tmp_path)
    files = {file.name: file.read_text().splitlines() for file in (tmp_path / "sts").iterdir()}
    assert {"STSBenchmark.dev.jsonl": 100, "STSBenchmark.test.jsonl": 100} == {n: len(f) for n, f in files.items()}


def test_rows_that_are_here_are_read_and_counted(dry_run, tmp_path, pairs):
    """A local file gives its own rows, so that a mistake in its columns is found, and the exact number of steps."""
    pairs.to_json(tmp_path / "pairs.jsonl")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"output: {tmp_path / 'out'}\ncorpus: {{source: {tmp_path / 'pairs.jsonl'}, held_out: 40}}\n"
        "model: {name: some/bert-base, max_seq_length: 16}\n"
        "train: {per_device_train_batch_size: 16, num_train_epochs: 3}\n"
    )
    code, out, err = dry_run(config)
    assert 0 == code, err[-2000:]
    assert ["30", "960", "3", "960"] == next(row for row in rows_of(out) if row[0] == "gcbs" and row[1] == "30")[1:5]
    assert "held-out MRR" in out
    code, out, err = dry_run(config, "--set", "corpus.columns=[anchor, missing]")
    assert (2, "") == (code, out)
    assert "missing: ['missing']" in err
    code, _, err = dry_run(config, "--set", "train.learning_rat=1")
    assert (2, True) == (code, "train.learning_rat: unknown key" in err)


@pytest.mark.parametrize("family", [BertConfig, DistilBertConfig, ModernBertConfig])
def test_the_arithmetic_is_that_of_any_encoder(tmp_path, family):
    """Encoders name their sizes differently; half of the layers is half of the arithmetic."""
    config = family(vocab_size=100, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, pad_token_id=0)
    config.save_pretrained(tmp_path / "model")
    weights = sum(p.numel() for name, p in AutoModel.from_config(config).named_parameters() if "layer" in name.lower())
    experiment = load_config("papers/simcse_unsup_bert_base", [f"model.name={tmp_path / 'model'}"])
    parts = [_parameters(architecture(experiment.model), False, layers) for layers in (None, 2)]
    assert weights <= parts[0] <= 1.5 * weights
    assert parts[1] == pytest.approx(parts[0] / 2, abs=1)


def test_the_arithmetic_is_that_of_the_layers(tmp_path):
    """BERT-base without its word vectors, which are looked up: two operations a weight and token, three passes a text."""
    config = load_config("papers/simcse_unsup_bert_base")
    assert "about 438 MB" in needs(config)[0]
    random, gcbs = (next(row for row in rows_of(cost_table(config)) if row[0] == name) for name in ("random", "gcbs"))
    layers = 109_482_240 - 30_522 * 768  # its published size, less the word vectors
    expected = [f"{3 * 2_000_000 * 2 * 32 * layers / 1e12:,.1f}", "0.0"]
    assert ["random", "15,625", "2,000,000", "0", "0", *expected] == random
    # Five plans of what is left of a million rows, each text once since both views are the same; four of them
    # without the batch of 64 that is fetched ahead.
    assert ["5", f"{3_000_000 - 4 * 64:,}"] == gcbs[3:5]


@pytest.mark.parametrize(
    "options",
    [
        {"num_train_epochs": 2},
        {"num_train_epochs": 2, "replan_steps": 0.3},
        {"max_steps": 15, "replan_steps": 4},
        {"num_train_epochs": 2, "planner_warmup_steps": 3, "replan_steps": 5},
        {"num_train_epochs": 2, "planner_cooldown_steps": 0.4, "replan_steps": 2},
        {"num_train_epochs": 1, "gradient_accumulation_steps": 3},
        {"num_train_epochs": 1, "planner": "random"},
    ],
)
def test_the_schedule_is_what_the_trainer_does(options, static_model, pairs, tmp_path):
    """Steps and plans that are priced are those that are made."""
    args = GCBSTrainingArguments(
        str(tmp_path), per_device_train_batch_size=16, report_to="none", disable_tqdm=True, use_cpu=True,
        save_strategy="no", logging_strategy="no", **options,
    )  # fmt: skip
    trainer = GCBSTrainer(static_model, args, pairs, loss=MultipleNegativesRankingLoss(static_model))
    planned = []
    original = trainer.plan_batches
    trainer.plan_batches = lambda anchors, *rest: planned.append(len(anchors)) or original(anchors, *rest)
    steps, plans = schedule(args, len(pairs))
    assert steps == trainer.train().global_step
    # The random planner is asked as well, but embeds nothing.
    assert plans == ([] if args.planner == "random" else planned)


@pytest.mark.parametrize(
    "options, rough",
    [
        ({}, False),
        ({"first_plan": "encode"}, False),
        ({"first_plan": "encode", "embedding_max_age": 6, "embedding_budget": 40, "replan_steps": 4}, True),
        ({"embedding_max_age": 0, "embedding_budget": 64}, True),
    ],
)
def test_harvested_rows_are_not_priced_as_encoded(options, rough, monkeypatch, static_model, pairs, tmp_path):
    """Only what is encoded beside training is: for the first plan, and rows that are too old."""
    args = GCBSTrainingArguments(
        str(tmp_path), per_device_train_batch_size=16, report_to="none", disable_tqdm=True, use_cpu=True,
        save_strategy="no", logging_strategy="no", embedding_source="harvest", num_train_epochs=3, **options,
    )  # fmt: skip
    encoded = []
    monkeypatch.setattr(
        "gcbs_st.embeddings.row_encoder.encode_rows",
        lambda m, d, rows, *a, **k: encoded.append(len(rows)) or encode_rows(m, d, rows, *a, **k),
    )
    trainer = GCBSTrainer(static_model, args, pairs, loss=MultipleNegativesRankingLoss(static_model))
    trainer.train()
    priced = sum(schedule(args, len(pairs))[1])
    assert abs(priced - sum(encoded)) <= (0.35 * sum(encoded) if rough else 8 * bool(encoded)), (priced, encoded)
