"""Pictures of plans, and the script that draws them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from gcbs_st.planners import available
from gcbs_st.reports.charts import pictures

pytest.importorskip("matplotlib", reason="the report extra")
SCRIPT = Path(__file__).parents[2] / "scripts" / "draw_batches.py"


@pytest.fixture
def rows():
    """60 rows in six tight clusters, shuffled."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(6, 8), 10, axis=0) + 0.05 * rng.normal(size=(60, 8))
    rows = rng.permutation(rows)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pixels(file):
    """The picture as an array."""
    from matplotlib.image import imread

    return imread(file)


def test_a_planned_order_looks_brighter_on_its_diagonal(rows, tmp_path, monkeypatch):
    """Panels differ: sorted by cluster there are bright squares, which the panel's title counts."""
    drawn = []
    original = pictures.new_figure
    monkeypatch.setattr(pictures, "new_figure", lambda *size: drawn.append(original(*size)) or drawn[-1])
    orders = {"shuffled": np.arange(60), "by cluster": np.argsort(rows.argmax(axis=1), kind="stable")}
    pictures.draw_similarity(rows, rows, orders, 10, tmp_path / "a.png")
    titles = [panel.get_title() for panel in drawn[0].axes]
    within = [float(title.split()[-1]) for title in titles if title]
    assert within[0] < 0.4 < 0.9 < within[1]
    assert [tmp_path / "a.png"] == list(tmp_path.iterdir())
    assert pixels(tmp_path / "a.png").std() > 0


@pytest.mark.parametrize("count", [1, 3, 4])
def test_any_number_of_panels(rows, tmp_path, count):
    """One panel an order, in lines of three."""
    pictures.draw_similarity(rows, rows, {str(i): np.arange(60) for i in range(count)}, 7, tmp_path / "p.png")
    height, width, _ = pixels(tmp_path / "p.png").shape
    assert (width > height * 1.5) == (count == 3)


def test_nothing_to_draw_is_refused(rows, tmp_path):
    """No order, or fewer rows than a batch."""
    with pytest.raises(ValueError, match="got 0 orders"):
        pictures.draw_similarity(rows, rows, {}, 10, tmp_path / "p.png")
    with pytest.raises(ValueError, match="of 60 rows, expected at least one, of a batch of 61"):
        pictures.draw_similarity(rows, rows, {"a": np.arange(60)}, 61, tmp_path / "p.png")


def test_the_script_draws_every_planner(rows, tmp_path, capsys):
    """By default there is a panel for each planner besides the random one."""
    spec = importlib.util.spec_from_file_location("draw_batches_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    np.save(tmp_path / "A.npy", rows)
    given = ["--anchors", str(tmp_path / "A.npy"), "--positives", str(tmp_path / "A.npy"), "--batch-size", "10"]
    assert 0 == script.main([*given, "--out", str(tmp_path / "all.png")])
    planned = [line.split()[2] for line in capsys.readouterr().err.splitlines() if line.startswith("planning with")]
    assert [name for name in available() if name != "random"] == planned
    assert 2 == script.main([*given, "--planners", "bogus", "--out", str(tmp_path / "no.png")])
    assert "expected one of" in capsys.readouterr().err
    assert not (tmp_path / "no.png").exists()
