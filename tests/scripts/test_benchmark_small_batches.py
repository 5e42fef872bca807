"""Tests of `scripts/benchmarks/small_batches.py` on tiny data: each part measures what it says, and writes it down."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks import load_benchmark
from conftest import make_pairs, make_static_model


@pytest.fixture
def measure(tmp_path, capsys):
    """Runs a part of the script on 60 pairs and a tiny static model; its JSON and what it printed."""
    module = load_benchmark("small_batches")
    pairs = make_pairs(60)
    pairs.add_column("image", [row // 2 for row in range(60)]).to_json(tmp_path / "pairs.jsonl")
    make_static_model().save(str(tmp_path / "model"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(part, *options):
        command = ["--part", part, "--pairs", str(tmp_path / "pairs.jsonl"), "--model", str(tmp_path / "model")]
        files = ["--json", str(tmp_path / "o.json"), "--markdown", str(tmp_path / "o.md")]
        assert 0 == module.main([*command, *files, *options])
        printed = capsys.readouterr().out
        assert (tmp_path / "o.md").read_text() in printed
        return json.loads((tmp_path / "o.json").read_text())["results"], printed

    yield run
    torch.set_num_threads(threads)


def test_distribution(measure, tmp_path):
    """Total variation falls with visits, and is drawn."""
    options = ["--rows", "24", "--batch-size", "8", "--epochs", "128", "--picture", str(tmp_path / "tv.png")]
    results, _ = measure("distribution", *options, "--scale", "5")
    distances = [mean for _, mean, _ in results["points"]]
    assert [4, 8, 16, 32, 64, 128] == [visits for visits, _, _ in results["points"]]
    assert distances == sorted(distances, reverse=True)
    assert results["slope"] < -0.3
    assert (tmp_path / "tv.png").stat().st_size > 1000


def test_gradient(measure):
    """EMC2's averaged gradient is nearer to the exact one than the in-batch loss's."""
    results, _ = measure("gradient", "--rows", "24", "--epochs", "50", "--scale", "8")
    last = {entry["loss"]: entry for entry in results if entry["epochs"] == 50}
    assert 4 == len(last)
    key = "bias, without positive"
    assert last["EMC2Loss"][key] < 0.5 * last["in-batch InfoNCE"][key]
    assert last["EMC2Loss"]["cosine, without positive"] > 0.9


def test_training(measure):
    """Losses of a seed are pairs; the global loss falls."""
    results, printed = measure("training", "--rows", "30", "--epochs", "2", "--seeds", "2", "--learning-rate", "0.05")
    assert [2, 2, 2, 2] == [len(runs) for runs in results["runs"].values()]
    for runs in results["runs"].values():
        assert all(run["global loss"] < results["before"]["global loss"] for run in runs)
    expected = (
        results["runs"]["EMC2Loss"][0]["global loss"]
        - results["runs"]["MultipleNegativesRankingLoss"][0]["global loss"]
    )
    other = (
        results["runs"]["EMC2Loss"][1]["global loss"]
        - results["runs"]["MultipleNegativesRankingLoss"][1]["global loss"]
    )
    assert (expected + other) / 2 == pytest.approx(results["differences"]["EMC2Loss"]["global loss"]["mean"])
    assert "95 % interval" in printed


def test_cost(measure):
    """Every loss has a step time, and some texts are encoded again."""
    results, _ = measure("cost", "--rows", "30", "--batch-size", "5", "--epochs", "4", "--scale", "20")
    assert results["encoded_again_a_batch"] > 0
    assert 1.0 == results["MultipleNegativesRankingLoss"]["times_in_batch"]


def test_too_few_rows(measure, capsys):
    """Of the 60 rows 30 are left, one a photo; asking for more is a mistake that is explained."""
    with pytest.raises(AssertionError):
        measure("gradient", "--rows", "31")
    assert "got 30 rows, expected at least 31" in capsys.readouterr().err
