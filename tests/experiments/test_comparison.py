"""Comparisons end to end on a tiny model: paired arms, baselines, resumption, selection, and their mistakes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pairs, make_static_model
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from gcbs_st.config import ConfigError, LossConfig, load_config
from gcbs_st.evaluation.sts_tasks import StsTask
from gcbs_st.experiments.arms import DevCurve, find_arm, loss_with_guide, make_arguments, plan_runs
from gcbs_st.experiments.baselines import mine_negatives
from gcbs_st.experiments.comparison import Options, compare, parse_seeds, select, settings_of
from gcbs_st.experiments.runner import Runner
from gcbs_st.experiments.tasks import STS

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare.py"
ARMS = ("random", "twin", "gcbs", "bisect", "guarded", "plain", "mined", "gist")


def write_config(folder: Path) -> Path:
    """A comparison of a tiny static model: 200 pairs of which the last batch is not full, STS files, arms."""
    make_static_model().save(str(folder / "start"))
    pairs = make_pairs()
    pairs.to_json(folder / "pairs.jsonl")
    (folder / "sts").mkdir()
    texts = pairs["anchor"][:12]
    for name in ("STSBenchmark.test", "STSBenchmark.dev", "STS12"):
        rows = [{"sentence1": texts[i], "sentence2": texts[(i * 5 + 1) % 12], "score": i % 6} for i in range(12)]
        (folder / "sts" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "config.yaml"
    file.write_text(f"""
output: {folder / "out"}
corpus: {{source: {folder / "pairs.jsonl"}}}
model: {{name: {folder / "start"}, static: true, sparse_gradients: true}}
evaluation: {{sts: {folder / "sts"}, splits: [test]}}
train:
  num_train_epochs: 2
  per_device_train_batch_size: 16
  learning_rate: 1e-2
  max_grad_norm: 0
  use_cpu: true
arms:
  twin: {{train: {{planner: random}}}}
  guarded: {{train: {{planner: bisect}}, loss: {{name: GuardedMultipleNegativesRankingLoss, options: {{margin: 0.9}}}}}}
  plain: {{host: true, train: {{batch_sampler: no_duplicates}}}}
  mined: {{train: {{planner: random}}, mine: {{num_negatives: 1}}}}
  gist: {{train: {{planner: random}}, loss: {{name: GISTEmbedLoss, options: {{guide: initial}}}}}}
""")
    return file


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The configuration, the options and the content of one comparison of all arms; tests do not change its folder."""
    folder = tmp_path_factory.mktemp("comparison")
    config = load_config(write_config(folder))
    options = Options(folder / "runs", ARMS, (1, 2), dev_steps=6, command="the command", config_file="the file")
    return config, options, compare(config, options, lambda line: None)


@pytest.fixture
def config(compared):
    """A configuration that is read anew."""
    return dataclasses.replace(compared[0])


@pytest.fixture
def counted(monkeypatch):
    """The runs that are trained from here on, as (arm, seed)."""
    ran = []
    original = Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, run: ran.append((run.arm, run.seed)) or original(self, run))
    return ran


def timeless(record):
    """What of a record does not depend on the clock."""
    curve = [(step, value) for step, _, value in record["dev_curve"]]
    kept = {
        key: value for key, value in record.items() if not key.startswith("seconds") and key not in ("run", "commit")
    }
    return {**kept, "dev_curve": curve}


def test_arms_are_paired(compared):
    """Equal arms end equally for the same seed and differ between seeds; each arm takes the same steps."""
    runs = compared[2]["runs"]
    assert timeless(runs["random"]["1"]) == timeless(runs["twin"]["1"])
    assert runs["random"]["1"]["train_loss"] != runs["random"]["2"]["train_loss"]
    assert runs["random"]["1"]["train_loss"] != runs["gcbs"]["1"]["train_loss"]
    assert {24} == {record["steps"] for by_seed in runs.values() for record in by_seed.values()}  # 2 x (200 // 16)
    assert {1: 1, 2: 2} == {int(seed): record["seed"] for seed, record in runs["mined"].items()}
    assert [6, 12, 18, 24] == [step for step, _, _ in runs["gist"]["1"]["dev_curve"]]


def test_a_comparison_writes_its_folders_and_figures(compared):
    """The files hold what was returned; differences are those of the runs; the Markdown says where it is from."""
    _, options, content = compared
    assert content == json.loads((options.out / "comparison.json").read_text())
    for arm in ARMS:
        folder = options.out / arm / "seed-2"
        assert content["runs"][arm]["2"] == json.loads((folder / "results.json").read_text())
        assert {"config.yaml", "log_history.json", "results.json"} == {file.name for file in folder.iterdir()}
        assert [arm] == list(load_config(folder / "config.yaml").arms)
    scores = {arm: [content["runs"][arm][seed]["avg"] for seed in "12"] for arm in ARMS}
    differences = np.subtract(scores["guarded"], scores["random"])
    assert differences.mean() == pytest.approx(content["arms"]["guarded"]["scores"]["avg"]["difference"]["mean"])
    assert 0.0 == content["arms"]["twin"]["scores"]["avg"]["difference"]["mean"]
    assert {"reached": 2, "of": 2}.items() <= content["arms"]["random"]["time_to_score"].items()
    text = (options.out / "comparison.md").read_text()
    for part in ("the command", "the file", content["corpus_hash"], "sentence-transformers", "learning_rate: 0.01"):
        assert part in text


def test_only_planned_arms_have_plans(compared):
    """Random and host arms log none; a planned one logs one for each epoch, with its quality."""
    runs = compared[2]["runs"]
    assert [[], [], 2] == [
        runs["random"]["1"]["plan_log"],
        runs["plain"]["1"]["plan_log"],
        len(runs["gcbs"]["1"]["plan_log"]),
    ]
    assert {"step", "gap", "closed", "tail_coverage", "false_negatives"} == set(runs["gcbs"]["1"]["plan_log"][0])


def test_mining_is_paid_for(compared):
    """The mined arm's seconds, and those of its curve, hold the mining of each seed."""
    mined, random = (compared[2]["runs"][arm]["2"] for arm in ("mined", "random"))
    assert mined["seconds_total"] == pytest.approx(mined["seconds_training"] + mined["seconds_mining"], abs=0.011)
    assert mined["dev_curve"][0][1] >= mined["seconds_mining"] > 0 == random["seconds_mining"]
    assert (0, None) == (mined["rows_without_mined_negative"], random["rows_without_mined_negative"])


def test_finished_runs_are_not_run_again(compared, counted, tmp_path):
    """A second comparison trains nothing and says the same, also in a folder that was moved."""
    config, options, content = compared
    shutil.copytree(options.out, tmp_path / "moved")
    again = compare(config, dataclasses.replace(options, out=tmp_path / "moved"), lambda line: None)
    assert [] == counted
    assert content["runs"] == again["runs"]


def test_an_interrupted_run_is_run_again_alone(compared, counted, tmp_path):
    """A folder without results is not finished, whatever else it holds, and comes to the same scores."""
    config, options, content = compared
    shutil.copytree(options.out, tmp_path / "runs")
    (tmp_path / "runs" / "gcbs" / "seed-2" / "results.json").unlink()
    (tmp_path / "runs" / "gcbs" / "seed-2" / "left_over").write_text("of the interrupted run")
    (tmp_path / "runs" / "gist" / "seed-1" / "results.json").write_text('{"half')
    again = compare(config, dataclasses.replace(options, out=tmp_path / "runs"), lambda line: None)
    assert [("gist", 1), ("gcbs", 2)] == counted
    assert not (tmp_path / "runs" / "gcbs" / "seed-2" / "left_over").exists()
    assert timeless(content["runs"]["gcbs"]["2"]) == timeless(again["runs"]["gcbs"]["2"])


@pytest.mark.parametrize(
    "change", [{"train": {"learning_rate": 0.02}}, {"loss": LossConfig(options={"scale": 10.0})}, {}], ids=str
)
def test_a_run_of_another_configuration_data_or_curve_is_not_finished(compared, change, tmp_path):
    """Only the run that is asked for counts: with its fields, its corpus and its steps between dev scores."""
    config, options, _ = compared
    changed = dataclasses.replace(config, **{**change, "train": {**config.train, **change.get("train", {})}})
    run = plan_runs(changed, ["random"], [1], options.out)[0]
    runner = Runner(config, dev_steps=6)
    assert (not change) == (runner.finished(run) is not None)
    runner.dev_steps = 7
    assert runner.finished(run) is None
    runner.dev_steps = 6
    runner.data = dataclasses.replace(runner.data, corpus_hash="another")
    assert runner.finished(run) is None


def test_dev_scores_do_not_disturb_the_training(config, compared, tmp_path):
    """Scoring at each step or only at the end, the model comes out the same, and the clock stands still."""
    runs = plan_runs(config, ["gcbs"], [1], tmp_path)
    often = Runner(config, dev_steps=1).run(runs[0]).to_json()
    seldom = Runner(config, dev_steps=0).run(runs[0]).to_json()
    assert (24, 1) == (len(often["dev_curve"]), len(seldom["dev_curve"]))
    scores = ("train_loss", "STSBenchmark-dev", "STS12", "gap_closed")
    assert [compared[2]["runs"]["gcbs"]["1"][key] for key in scores] == [often[key] for key in scores]
    assert [seldom[key] for key in scores] == [often[key] for key in scores]
    assert seldom["dev_curve"][0][2] == seldom["STSBenchmark-dev"]


def test_the_curves_clock_stands_still_while_it_scores(static_model, monkeypatch):
    """A scoring of 0.3 s is no part of the seconds."""
    slow = lambda *_, **__: time.sleep(0.3) or {"STSBenchmark-dev": 5.0}  # noqa: E731
    monkeypatch.setattr("gcbs_st.experiments.tasks.evaluate_tasks", slow)
    curve = DevCurve(StsTask("t", ["a", "b"], ["a", "b"], [0.0, 1.0]), 2, 8, STS)
    curve.start(static_model)
    for step in range(1, 6):
        state = type("State", (), {"global_step": step, "max_steps": 5})
        curve.on_step_end(None, state, None)
    assert [2, 4, 5] == [step for step, _, _ in curve.points]
    assert curve.seconds() < 0.3 < 0.9 <= curve.seconds_scoring
    assert all(seconds < 0.3 for _, seconds, _ in curve.points)


@given(
    st.lists(st.sampled_from([*ARMS, "tbs", "best"]), min_size=1, unique=True),
    st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
)
def test_runs_of_a_seed_differ_in_nothing_but_their_arm(compared, names, seeds):
    """Model, data, seed and every field of train that an arm does not name are those of the other arms."""
    config = compared[0]
    runs = plan_runs(config, names, seeds, Path("out"))
    assert [(seed, name) for seed in seeds for name in names] == [(run.seed, run.arm) for run in runs]
    assert len(runs) == len({run.folder for run in runs})
    for run in runs:
        arm, resolved = find_arm(config, run.arm), run.config
        assert {**config.train, **arm.train, "seed": run.seed} == resolved.train
        assert (config.model, config.corpus, config.evaluation) == (
            resolved.model,
            resolved.corpus,
            resolved.evaluation,
        )
        assert (arm.loss or config.loss) == resolved.loss
        args = make_arguments(run, 200)
        assert (run.seed, 24, "no") == (args.seed, args.max_steps, str(args.save_strategy.value))


def test_mined_negatives_are_the_nearest_other_texts():
    """Against brute force: the nearest positive of the corpus that is not the row's own; rows keep their order."""
    rows, model = make_pairs(60), make_static_model()
    mined = mine_negatives(rows, model)
    assert (rows["anchor"], rows["positive"]) == (mined.rows["anchor"][:], mined.rows["positive"][:])
    anchors, positives = (model.encode(list(rows[name]), normalize_embeddings=True) for name in ("anchor", "positive"))
    scores = anchors @ positives.T
    np.fill_diagonal(scores, -np.inf)
    expected = [rows["positive"][int(i)] for i in scores.argmax(axis=1)]
    assert expected == list(mined.rows["negative"])
    assert 0 == mined.filled


def test_each_model_mines_its_own_negatives(config, tmp_path):
    """A sweep over settings of the model mines with the model that each run starts from, and once for each."""
    runner = Runner(config)
    options = config.arms["mined"].mine
    narrow = dataclasses.replace(config, model=dataclasses.replace(config.model, name=str(tmp_path / "other")))
    make_static_model(seed=5).save(str(tmp_path / "other"))
    found = [runner._mine(one, options) for one in (config, narrow, config, narrow)]
    assert found[0] is found[2] and found[1] is found[3]
    assert found[0].rows["negative"][:] != found[1].rows["negative"][:]


def test_rows_without_a_mined_negative_keep_their_place():
    """A margin that nothing meets: each row gets a random text that is not its own, the same at each call."""
    rows = make_pairs(60)
    rows = Dataset.from_dict({name: [*rows[name], rows[name][0]] for name in rows.column_names})  # a repeated pair
    mined = [mine_negatives(rows, make_static_model(), relative_margin=3.0, num_negatives=2) for _ in range(2)]
    assert (61, 61) == (mined[0].filled, len(mined[0].rows))
    for row in mined[0].rows:
        assert 4 == len({row["anchor"], row["positive"], row["negative_1"], row["negative_2"]})
    assert mined[0].rows["negative_1"][:] == mined[1].rows["negative_1"][:]


def test_negatives_that_rows_bring_stay_before_the_mined_ones():
    """A column `negative` becomes the first of two, `negative_1` and `negative_2` the first of three."""
    rows, model = make_pairs(20), make_static_model()
    alone = list(mine_negatives(rows, model).rows["negative"])
    one = mine_negatives(rows.add_column("negative", list(rows["anchor"])), model).rows
    assert ["anchor", "positive", "negative_1", "negative_2"] == one.column_names
    assert (list(rows["anchor"]), alone) == (list(one["negative_1"]), list(one["negative_2"]))
    two = mine_negatives(one, model).rows
    assert ["anchor", "positive", "negative_1", "negative_2", "negative_3"] == two.column_names
    assert [one["negative_1"][:], one["negative_2"][:], alone] == [two[f"negative_{i}"][:] for i in (1, 2, 3)]


def test_mining_refuses_what_it_cannot_do():
    """No negatives asked for, and a corpus of one text, are named."""
    rows = make_pairs(20)
    with pytest.raises(ValueError, match="mine: got num_negatives=0"):
        mine_negatives(rows, make_static_model(), num_negatives=0)
    alike = Dataset.from_dict({"anchor": ["w1", "w2"], "positive": ["w3", "w3"]})
    with pytest.raises(ValueError, match="mine: no 1 negatives for 'w1'"):
        mine_negatives(alike, make_static_model())


def test_a_guide_may_be_another_model(static_model, tmp_path):
    """By its name, as `model.name`: loaded once, frozen, and not the model that is trained."""
    other = make_static_model(seed=9)
    other.save(str(tmp_path / "strong"))
    options = {"guide": str(tmp_path / "strong"), "temperature": 0.05}
    loss = loss_with_guide(LossConfig("GISTEmbedLoss", options), static_model)
    assert torch.equal(other[0].embedding.weight, loss.guide[0].embedding.weight)
    assert not any(parameter.requires_grad for parameter in loss.guide.parameters())
    assert not torch.equal(static_model[0].embedding.weight, loss.guide[0].embedding.weight)


def test_the_guide_is_the_untrained_model(static_model):
    """It has weights of its own that are not trained, and the static model gets its own tokenizer back."""
    tokenizer = static_model.tokenizer
    loss = loss_with_guide(LossConfig("GISTEmbedLoss", {"guide": "initial", "temperature": 0.05}), static_model)
    before = loss.guide[0].embedding.weight.clone()
    assert torch.equal(before, static_model[0].embedding.weight)
    assert not any(parameter.requires_grad for parameter in loss.guide.parameters())
    assert 0.05 == loss.temperature
    assert (tokenizer, type(tokenizer)) == (static_model.tokenizer, type(loss.guide.tokenizer))
    with torch.no_grad():
        static_model[0].embedding.weight.add_(1.0)
    assert torch.equal(before, loss.guide[0].embedding.weight)
    assert all(parameter.requires_grad for parameter in static_model.parameters())


def test_selection_scores_nothing_but_dev(compared, tmp_path, monkeypatch):
    """Without any test file: each arm's best setting is the one with the highest mean, and no test is scored."""
    config = compared[0]
    shutil.copytree(Path(config.evaluation.sts), tmp_path / "sts")
    for file in ("STS12.jsonl", "STSBenchmark.test.jsonl"):
        (tmp_path / "sts" / file).unlink()
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, sts=str(tmp_path / "sts")))
    options = Options(tmp_path / "runs", ("random", "gcbs"), (1, 2), dev_steps=0)
    table = select(config, options, ["train.learning_rate=0.001,0.05"], lambda line: None)
    content = json.loads((options.out / "selection.json").read_text())
    for arm in options.arms:
        means = {setting: sum(scores) / 2 for setting, scores in content["scores"][arm].items()}
        assert ["train.learning_rate=0.001", "train.learning_rate=0.05"] == list(means)
        assert len(set(means.values())) == 2
        assert max(means, key=means.get) == content["best"][arm]
    assert 2 == len(re.findall(r"\| best \|", table))
    record = json.loads(next((options.out / "random").rglob("results.json")).read_text())
    assert ["STSBenchmark-dev"] == [key for key in record if key.startswith("STS") or key == "avg"]


@pytest.mark.parametrize("dev", ["sts", "heldout"])
def test_a_selection_shows_both_figures_that_a_choice_may_rest_on(config, tmp_path, dev):
    """With pairs kept back, STS-B dev stands beside them, whichever of the two is chosen by; and no other task."""
    config = dataclasses.replace(
        config,
        corpus=dataclasses.replace(config.corpus, held_out=24),
        evaluation=dataclasses.replace(config.evaluation, dev=dev),
    )
    chosen, beside = {"sts": ("STSBenchmark-dev", "heldout_mrr"), "heldout": ("heldout_mrr", "STSBenchmark-dev")}[dev]
    options = Options(tmp_path / "runs", ("random",), (1,), dev_steps=0)
    table = select(config, options, ["train.learning_rate=0.001"], lambda line: None)
    head = [cell.strip() for cell in table.splitlines()[0].split("|")[3:5]]
    assert [chosen, beside] == head
    content = json.loads((options.out / "selection.json").read_text())
    record = json.loads(next(options.out.rglob("results.json")).read_text())
    assert chosen == content["task"]
    assert {beside: {"random": {"train.learning_rate=0.001": [record[beside]]}}} == content["beside"]
    assert "avg" not in record and "SICK-R-dev" not in record


def test_one_seed_has_no_intervals_and_models_are_saved_on_demand(config, tmp_path):
    """K = 1 makes a whole report; --save-models keeps models that load."""
    from sentence_transformers import SentenceTransformer

    pytest.importorskip("matplotlib", reason="the report extra")
    from gcbs_st.reports.charts import pictures

    options = Options(tmp_path / "runs", ("random", "gcbs"), (5,), dev_steps=12, save_models=True)
    content = compare(config, options, lambda line: None)
    difference = content["arms"]["gcbs"]["scores"]["avg"]["difference"]
    assert (None, 1) == (difference["interval"], difference["pairs"])
    assert "[+" not in (options.out / "comparison.md").read_text().split("Mean scores")[0]
    SentenceTransformer(str(options.out / "gcbs" / "seed-5" / "model"), device="cpu").encode("w1")
    files = pictures.draw_comparison(content, options.out)
    assert ["differences.png", "dev_scores.png", "plans.png"] == [file.name for file in files]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_an_arm_may_have_fewer_seeds(compared, counted, tmp_path):
    """The first ones; it is compared over those, and the others over all of theirs."""
    pytest.importorskip("matplotlib", reason="the report extra")
    from gcbs_st.reports.charts import pictures

    config, options, whole = compared
    shutil.copytree(options.out, tmp_path / "runs")
    fewer = dataclasses.replace(
        options, out=tmp_path / "runs", arms=("random", "gcbs", "twin"), fewer={"gcbs": 1}, seeds=(1, 2)
    )
    content = compare(config, fewer, lambda line: None)
    assert [] == counted
    scores = {arm: content["arms"][arm]["scores"]["avg"]["difference"] for arm in ("gcbs", "twin")}
    assert {"gcbs": 1, "twin": 2} == {arm: difference["pairs"] for arm, difference in scores.items()}
    expected = whole["runs"]["gcbs"]["1"]["avg"] - whole["runs"]["random"]["1"]["avg"]
    assert pytest.approx(expected) == scores["gcbs"]["mean"]
    assert ["1"] == list(content["runs"]["gcbs"])
    assert pictures.draw_comparison(content, fewer.out)


@pytest.mark.parametrize(("text", "seeds"), [("3", (1, 2, 3)), ("1", (1,)), ("3,5,8", (3, 5, 8)), ("7,", (7,))])
def test_seeds_are_a_count_or_a_list(text, seeds):
    """A number alone counts."""
    assert seeds == parse_seeds(text)


def test_settings_are_all_combinations():
    """The product of two sweeps, the last key the fastest."""
    settings = settings_of(["train.learning_rate=1e-3,2e-3", "loss.options.scale=20,30"])
    assert 4 == len(set(settings))
    assert ("train.learning_rate=1e-3", "loss.options.scale=30") == settings[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--planners", "random,nonesuch"], r"arm: got 'nonesuch', expected an entry of arms \(twin, .*planner"),
        (["--planners", "gcbs,twin"], r"--reference: got 'random', expected one of the arms, gcbs, twin"),
        (["--planners", "random@1,twin"], r"--planners: random is what the others are compared with.*drop @N"),
        (["--planners", "random,twin@0"], r"--planners: got twin@0, expected ARM, or ARM@N"),
        (["--planners", "random,random"], r"arms: got \['random', 'random'\], expected one or more, each once"),
        (["--planners", "random", "--seeds", "two"], r"--seeds: got 'two', expected a count such as 8"),
        (["--planners", "random", "--seeds", "0"], r"--seeds: got '0'"),
        (["--planners", "random", "--seeds", "3,3"], r"seeds: got \[3, 3\]"),
        (["--planners", "random", "--set", "arms.twin.trian={}"], r"arms\.twin\.trian: unknown key; expected one of train"),
        (["--planners", "random", "--set", "arms.mined.mine.k=2"], r"arms\.mined\.mine\.k: unknown key"),
        (["--planners", "random", "--set", "arms.mined.mine=3"], r"arms\.mined\.mine: got 3, expected a mapping"),
        (["--planners", "random,plain", "--set", "arms.plain.train.planner=gcbs"], r"arms\.plain\.train\.planner: a field of ours"),
        (["--planners", "random,twin", "--set", "arms.twin.train.lr=1"], r"train\.lr: unknown key"),
        (["--planners", "random", "--select"], r"--select: got no --sweep"),
        (["--planners", "random", "--select", "--sweep", "train.seed="], r"--sweep train\.seed=: expected KEY=V1,V2"),
        (["--planners", "random", "--select", "--sweep", "corpus.held_out=1"], r"expected KEY=V1,V2 with a key of train"),
        (["--planners", "random", "--select", "--sweep", "train.lr=1"], r"train\.lr: unknown key"),
    ],
)  # fmt: skip
def test_mistakes_are_explained_before_anything_runs(compared, arguments, message, capsys, counted, tmp_path):
    """Exit code 2, one line on stderr, nothing on stdout, nothing trained."""
    spec = importlib.util.spec_from_file_location("compare_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    config = compared[1].out.parent / "config.yaml"
    assert 2 == script.main(["--config", str(config), "--out", str(tmp_path / "out"), *arguments])
    shown = capsys.readouterr()
    assert re.search(message, shown.err)
    assert ("", 0, []) == (shown.out, shown.err.count("Traceback"), counted)


def test_the_script_prints_the_tables(compared, capsys, counted):
    """The command line as a user types it, on runs that are finished."""
    spec = importlib.util.spec_from_file_location("compare_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = compared[1].out
    command = [
        "--config",
        str(folder.parent / "config.yaml"),
        "--out",
        str(folder),
        "--seeds",
        "2",
        "--dev-steps",
        "6",
    ]
    assert 0 == script.main([*command, "--planners", ",".join(ARMS)])
    shown = capsys.readouterr()
    assert [] == counted
    assert len(ARMS) * 2 == shown.err.count("finished before")
    assert "Differences to random" in shown.out
    assert "compare.py --config" in shown.out


def test_an_unknown_arm_names_what_there_is(config):
    """The message lists arms, runs and planners."""
    with pytest.raises(
        ConfigError,
        match=r"'x', expected an entry of arms \(twin.*\) or of runs \(random, gcbs\), or a planner \(best",
    ):
        find_arm(config, "x")
