"""The planning script: what it writes and prints, and how mistakes are explained."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from gcbs_st.planners import make_planner
from gcbs_st.planners.quality import plan_quality

SCRIPT = Path(__file__).parents[2] / "scripts" / "plan_batches.py"


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("plan_batches_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path):
    """Saved embeddings of 90 rows, in half precision."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(90, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(tmp_path / "A.npy", rows.astype(np.float16))
    np.save(tmp_path / "P.npy", np.roll(rows, 1, axis=1).astype(np.float16))
    return ["--anchors", str(tmp_path / "A.npy"), "--positives", str(tmp_path / "P.npy"), "--batch-size", "8"]


def test_it_writes_the_planners_order_and_prints_its_quality(script, files, tmp_path, capsys):
    """One JSON line with the planner, what it took, and the figures of plan_quality."""
    out = tmp_path / "new" / "order.npy"
    assert 0 == script.main([*files, "--planner", "gcbs", "--option", "quantile=0.9", "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    record = json.loads(lines[0])
    anchors, positives = np.load(tmp_path / "A.npy"), np.load(tmp_path / "P.npy")
    order = make_planner("gcbs", {"quantile": 0.9}).plan(anchors, positives, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(order, np.load(out))
    expected = plan_quality(anchors, positives, order, 8).rounded()
    assert (1, "gcbs") == (len(lines), record["planner"])
    assert expected == {key: record[key] for key in expected}
    assert record["seconds"] >= 0
    assert record["peak_bytes"] > 1_000_000
    assert [out] == list(out.parent.iterdir())


def test_the_seed_decides(script, files, tmp_path):
    """The same seed gives the same random order, another seed another one."""
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert 0 == script.main(
            [*files, "--planner", "random", "--seed", seed, "--out", str(tmp_path / f"{name}.npy")]
        )
    first, again, other = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_rows_of_a_group_never_share_a_batch(script, files, tmp_path):
    """With a group file the written order keeps each group's rows in different batches."""
    groups = np.repeat(np.arange(30), 3)
    np.save(tmp_path / "G.npy", groups)
    out = tmp_path / "order.npy"
    assert 0 == script.main([*files, "--planner", "gcbs", "--groups", str(tmp_path / "G.npy"), "--out", str(out)])
    order = np.load(out)
    assert list(range(90)) == sorted(order.tolist())
    assert [8] * 11 == [len(set(batch)) for batch in groups[order[:88]].reshape(-1, 8)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--planner", "bogus"], "planner: got 'bogus', expected one of"),
        (["--option", "quantile"], "--option quantile: expected KEY=VALUE"),
        (["--option", "quantle=1"], "planner_options of 'gcbs': got quantle"),
        (["--anchors", "/not/here.npy"], "/not/here.npy"),
        (["--batch-size", "0"], "batch_size: got 0"),
    ],
)
def test_mistakes_are_explained_in_one_line(script, files, tmp_path, capsys, change, message):
    """Exit code 2, the reason on stderr, nothing written."""
    out = tmp_path / "order.npy"
    assert 2 == script.main([*files, "--planner", "gcbs", "--out", str(out), *change])
    shown = capsys.readouterr()
    assert message in shown.err
    assert (1, "") == (len(shown.err.splitlines()), shown.out)
    assert not out.exists()
