"""The reader of the study: arms, gains, and which figure ranks them."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType

import pytest
from paths import ROOT
from scipy.stats import spearmanr

from gcbs_st.config import CorpusConfig, ExperimentConfig, LossConfig, ModelConfig, dump_config
from gcbs_st.records.run_result import RunResult


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("which_batches_teach", ROOT / "scripts" / "which_batches_teach.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_run(folder, arm, seed, dev, closed=None, loss=1.0, **train):
    """What a run of a comparison leaves."""
    own = folder / arm / f"seed-{seed}"
    own.mkdir(parents=True)
    result = RunResult(
        scores={"STSBenchmark-dev": dev}, steps=4, train_loss=1.0, gap_closed=0.0, plans=1, seconds_training=1.0,
        seconds_embedding=0.0, seconds_planning=0.0, run=arm, seed=seed, corpus_hash="c", training_rows=9, commit=None,
        python="3", versions={}, dev_steps=0,
    )  # fmt: skip
    (own / "results.json").write_text(json.dumps(result.to_json()))
    config = ExperimentConfig(
        output="o", corpus=CorpusConfig(source="docstrings"), model=ModelConfig(name="m"),
        train={"learning_rate": 0.1, "planner": "bisect", **train}, loss=LossConfig(options={"margin": 0.9}),
    )  # fmt: skip
    (own / "config.yaml").write_text(dump_config(config))
    log = [{"loss": 9.0, "step": 1}, {"loss": loss, "step": 3, "grad_norm": 2.0}]
    if closed is not None:
        log.insert(1, {"gcbs/closed": closed, "step": 2})
    (own / "log_history.json").write_text(json.dumps(log))


def test_arms_are_read_with_their_gains(script, tmp_path):
    """Gains are paired over the seeds that both have; figures are those of the first plan and the step behind it."""
    for seed, (plain, planned) in enumerate([(50.0, 51.0), (60.0, 60.5)], start=1):
        write_run(tmp_path, "random", seed, plain, planner="random")
        write_run(tmp_path, "near", seed, planned, closed=0.25 * seed, loss=3.0, planner_view="initial")
    write_run(tmp_path, "near", 3, 99.0, closed=0.75)
    arms = script.read_arms(tmp_path)
    assert {1: 51.0, 2: 60.5, 3: 99.0} == arms["near"]["dev"]
    assert (0.75, 2, 2) == tuple(arms["near"]["difference"][key] for key in ("mean", "wins", "pairs"))
    assert "initial" == arms["near"]["view"] and 0.9 == arms["near"]["margin"]
    assert 0.5 == arms["near"]["figures"]["gcbs/closed"] and 7 / 3 == pytest.approx(arms["near"]["figures"]["loss"])
    assert {} == arms["random"]["figures"] and "" == arms["random"]["view"]


def test_a_folder_without_the_reference_is_refused(script, tmp_path):
    """The message names the arms that are there."""
    write_run(tmp_path, "near", 1, 1.0)
    with pytest.raises(ValueError, match="got the arms near, expected random among them"):
        script.read_arms(tmp_path)


def arms_of(gains, closed):
    """Arms with nothing but a gain and a figure."""
    return {
        str(i): {"figures": {"gcbs/closed": c}, "difference": {"mean": g, "wins": 0, "pairs": 1}}
        for i, (g, c) in enumerate(zip(gains, closed, strict=True))
    }


def test_rank_correlation_of_one_setting_is_spearmans(script):
    """Ties included; its interval holds it."""
    gains, closed = [0.1, 0.5, 0.5, -1.0, 2.0, 0.3], [0.2, 0.1, 0.4, 0.0, 0.9, 0.4]
    found = script.correlations({"one": arms_of(gains, closed)})["gcbs/closed"]
    assert spearmanr(gains, closed).statistic == pytest.approx(found["correlation"])
    assert found["interval"][0] <= found["correlation"] <= found["interval"][1]
    assert 6 == found["arms"]


def test_settings_are_ranked_apart(script):
    """That all gains of one setting are larger, and its figures too, says nothing of which arm is better."""
    low, high = arms_of([1, 2, 3, 4], [4, 3, 2, 1]), arms_of([101, 102, 103, 104], [104, 103, 102, 101])
    found = script.correlations({"low": low, "high": high})["gcbs/closed"]
    assert -1 == pytest.approx(found["correlation"])
    assert [-1, -1] == pytest.approx(found["by_setting"])


def test_tables_are_written(script, tmp_path, capsys):
    """One for each setting, the best arm first, and one of the figures."""
    for arm, dev in (("random", 50.0), ("a", 52.0), ("b", 51.0), ("c", 49.0)):
        write_run(tmp_path / "runs", arm, 1, dev, closed=None if arm == "random" else dev / 100)
    code = script.main(
        [
            "--study",
            f"here={tmp_path / 'runs'}",
            "--markdown",
            str(tmp_path / "t.md"),
            "--json",
            str(tmp_path / "t.json"),
        ]
    )
    assert 0 == code
    text = (tmp_path / "t.md").read_text()
    assert text.index("| a ") < text.index("| b ") < text.index("| random ") < text.index("| c ")
    assert "+1.00" in text.split("rank correlation")[1]
    assert {"studies", "correlations"} == set(json.loads((tmp_path / "t.json").read_text()))
    assert 0 != script.main(["--study", "here"])
