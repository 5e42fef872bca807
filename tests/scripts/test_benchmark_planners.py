"""The benchmark of planners, run on a few rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from benchmarks import BENCHMARKS, load_benchmark
from oracles import reference_gcbs


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    return load_benchmark("planners")


@pytest.fixture
def pairs(tmp_path: Path) -> list[str]:
    """Two files of 300 unit rows."""
    rows = np.random.default_rng(0).normal(size=(300, 12))
    files = []
    for name, side in (("a", rows), ("p", rows + 0.3 * np.random.default_rng(1).normal(size=rows.shape))):
        files.append(str(tmp_path / f"{name}.npy"))
        np.save(files[-1], (side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float32))
    return files


def test_both_reports_are_written(script, pairs, tmp_path, monkeypatch, capsys):
    """Planners and baselines at two numbers of rows give a record each, and a line of the table."""
    # A process a measurement takes seconds to import the host; the next test does it once.
    monkeypatch.setattr(script, "measure", script.run_job)
    command = ["--anchors", pairs[0], "--positives", pairs[1], "--planner", "random", "--planner", "gcbs,quantile=0.9"]
    command += ["--rows", "200", "--rows", "400", "--batch-size", "10", "--runs", "2"]
    command += ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    assert 0 == script.main(command)
    report = json.loads((tmp_path / "r.json").read_text())
    methods = ["reference", "mine_hard_negatives", "random", "gcbs,quantile=0.9"]
    assert methods * 2 == [result["method"] for result in report["results"]]
    assert [200] * 4 + [400] * 4 == [result["n"] for result in report["results"]]
    assert all(result["seconds"] > 0 and 2 == len(result["every_run"]) for result in report["results"])
    assert [1.0, 1.0] == [r["times_reference"] for r in report["results"] if r["method"] == "reference"]
    assert {"machine", "versions", "commit", "seed", "runs", "results", "exponents"} <= set(report)
    assert set(methods) == set(report["exponents"])
    table = (tmp_path / "r.md").read_text()
    assert table == capsys.readouterr().out[-len(table) :]
    assert all(method in table for method in methods)


def test_another_reading_of_hobit_leaves_contradictions_for_the_end(script):
    """It covers each row once, and its last batches hold what all before them avoided."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(40, 12)), 8, axis=0) + 0.1 * rng.normal(size=(320, 12))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    order = script.load_method("pool_greedy", None, 0.95)(rows, rows, 16, 0)
    assert list(range(320)) == sorted(order.tolist())
    false = rows @ rows.T > 0.95
    masked = [false[np.ix_(batch, batch)].sum() - 16 for batch in order.reshape(-1, 16)]
    assert max(masked[-3:]) > 2 * np.mean(masked[:10])


def test_a_margin_is_told_and_measured(script, pairs):
    """With a margin a record also says what the guarded loss sees."""
    job = {"method": "best", "files": pairs, "batch_size": 10, "seed": 0, "reference": None, "sample_rows": 100}
    found, plain = script.run_job(job | {"margin": 0.95}), script.run_job(job)
    assert {"trained_closed", "masked", "worst_masked"} == set(found) - set(plain)


def test_a_measurement_has_a_process_of_its_own(script, pairs):
    """One job comes back with its seconds, its peak memory and the quality of its plan."""
    job = {"method": "random", "files": pairs, "batch_size": 10, "seed": 0, "reference": None, "sample_rows": 100}
    found = script.measure(job)
    assert {"seconds", "compile_seconds", "peak_bytes", "closed", "tail_coverage", "false_negatives"} == set(found)
    assert 2**20 < found["peak_bytes"]


def test_a_users_mistake_is_explained(pairs):
    """An unknown planner ends with code 2 and the planner's own message."""
    options = ["--anchors", pairs[0], "--positives", pairs[1], "--planner", "fastest", "--no-baselines"]
    command = [sys.executable, BENCHMARKS / "planners.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 2 == done.returncode
    assert "planner: got 'fastest', expected one of best" in done.stderr


def test_reference_is_plain_gcbs(script, pairs):
    """The script's reference gives the order of the tests' own."""
    anchors, positives = (np.load(path) for path in pairs)
    expected = reference_gcbs(anchors, positives, 0.99)
    assert expected.tolist() == script.reference_order(anchors, positives, 0.99).tolist()


def test_rows_drawn_again_are_new_and_near(script, pairs, tmp_path):
    """More rows than there are come from the same ones with noise: unit, none twice, near where they came from."""
    arguments = script.parse_arguments(["--anchors", pairs[0], "--positives", pairs[1]])
    files = script.write_rows(arguments, 700, tmp_path)
    again = script.write_rows(arguments, 700, tmp_path)
    for source, file, same in zip(pairs, files, again, strict=True):
        rows, found = np.load(source), np.load(file)
        assert (700, 12) == found.shape
        np.testing.assert_array_equal(np.load(same), found)
        np.testing.assert_allclose(found[:300], rows, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert 700 == len(np.unique(found, axis=0))
        assert (found[300:600] * rows).sum(axis=1).mean() > 0.9


def test_exponent_is_the_slope(script):
    """Seconds that grow with the square of n have exponent 2; one n alone has none."""
    results = [{"method": "a", "n": n, "seconds": 1e-6 * n**2} for n in (100, 1000, 10_000)]
    assert {"a": 2.0} == script.fit_exponents([*results, {"method": "b", "n": 5, "seconds": 1.0}])
