"""Tests of `scripts/benchmarks/overhead.py` on a tiny model: what is measured is there, and is what it says."""

from __future__ import annotations

import json
import os

import pytest
import torch
from benchmarks import load_benchmark
from conftest import make_pairs, make_static_model


@pytest.fixture
def script(monkeypatch):
    """The script as a module, with batches that fit tiny data."""
    module = load_benchmark("overhead")
    monkeypatch.setitem(module.SETTINGS["static"], "batch_size", 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def files(tmp_path):
    """A file of pairs and a saved static model."""
    make_pairs(600).to_json(tmp_path / "pairs.jsonl")
    make_static_model().save(str(tmp_path / "model"))
    return str(tmp_path / "pairs.jsonl"), str(tmp_path / "model")


def test_each_arm_has_seconds_and_plans(script, files, tmp_path, capsys):
    """What plans the first epoch decides how many plans there are; encoded plans are as good as fresh ones."""
    command = ["--setting", "static", "--pairs", files[0], "--model", files[1], "--rounds", "2"]
    assert 0 == script.main([*command, "--json", str(tmp_path / "o.json"), "--markdown", str(tmp_path / "o.md")])
    report = json.loads((tmp_path / "o.json").read_text())
    assert list(script.ARMS) == list(report["results"])
    assert 1.0 == report["results"]["random"]["times_random"]
    plans = {name: result["plans"] for name, result in report["results"].items() if name != "random"}
    assert [2, 3, 2, 2, 3] == [len(of_arm) for of_arm in plans.values()]
    assert all(
        "closed_fresh" in plan and "closed_of_fresh_plan" in plan for of_arm in plans.values() for plan in of_arm
    )
    for plan in plans["encode"]:
        assert plan["closed_fresh"] == pytest.approx(plan["closed_of_fresh_plan"], abs=0.2)
    table = capsys.readouterr().out
    assert (tmp_path / "o.md").read_text() in table + "\n"
    assert all(name in table for name in script.ARMS)


@pytest.mark.slow
def test_together_and_over_processes(script, files, tmp_path, capsys, monkeypatch):
    """Runs at the same time report wall and CPU time; one and more processes plan about as well."""
    command = ["--pairs", files[0], "--model", files[1], "--rounds", "1", "--json", str(tmp_path / "o.json")]
    together = ["--setting", "static", "--together", "--no-quality", "--rows", "600", "--arm", "encode"]
    with monkeypatch.context() as one_core:
        one_core.setattr(os, "sched_getaffinity", lambda process: {0})
        assert 2 == script.main([*command, *together])
        assert "needs two cores" in capsys.readouterr().err
    if len(os.sched_getaffinity(0)) > 1:
        assert 0 == script.main([*command, *together])
        run = json.loads((tmp_path / "o.json").read_text())["results"]["encode"]["every_run"][0]
        assert min(run["seconds_times_random"], run["cpu_seconds_times_random"]) > 0.3
    assert 0 == script.main([*command, "--setting", "ranks"])
    results = json.loads((tmp_path / "o.json").read_text())["results"]
    assert {"bisect", "partition", "best"} == set(results)
    assert all({"1", "2", "3"} == set(by) for by in results.values())
    assert "3 processes" in capsys.readouterr().out


def test_the_store_alone(script, tmp_path, capsys):
    """Rates are of what was written."""
    assert 0 == script.main(["--setting", "store", "--rows", "640", "--json", str(tmp_path / "s.json")])
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["rows_a_second"] == pytest.approx(64 * report["batches_a_second"])
    assert report["resident_megabytes"] < 50
    assert "640" in capsys.readouterr().out


def test_mistakes_are_told(script, tmp_path, capsys):
    """No file of pairs, or one that is not there."""
    with pytest.raises(SystemExit):
        script.main(["--setting", "static"])
    assert 2 == script.main(["--setting", "static", "--pairs", str(tmp_path / "none.jsonl")])
    assert "none.jsonl" in capsys.readouterr().err
