"""Tests of ``run_gpu.py`` on the CPU, on which all of its checks run at a small size."""

from __future__ import annotations

import re

import numpy as np
import pytest
import run_gpu
import torch
from oracles import in_batch_quality
from run_gpu import LOSSES, main

from gcbs_st.planners.algorithms import torch_trees

pytestmark = pytest.mark.usefixtures("one_thread")


def verdicts(text: str) -> dict[str, str]:
    """What became of each check, by its name, in the table that is written."""
    return dict(re.findall(r"^\| ([^|]+) \| (ok|skipped|FAILED) \|", text, flags=re.MULTILINE))


def test_every_check_runs_on_a_cpu(tmp_path, capsys):
    """All are fine but fp16, which the host refuses there; the page says so, on what, and how long plans took."""
    code = main(["--device", "cpu", "--rows", "1024", "--write", str(tmp_path / "page.md")])
    page = (tmp_path / "page.md").read_text()
    found = verdicts(page)
    assert 0 == code, page
    names = ["embeddings", "harvest", *LOSSES]
    expected = {f"{name}, {precision}": "ok" for name in names for precision in ("float32", "bf16")}
    expected |= {f"{name}, fp16": "skipped" for name in names}
    assert expected | {"resumed run": "ok", "bisect, 1,024 rows": "ok"} == found
    assert f"torch {torch.__version__}" in page.splitlines()[0]
    assert re.search(r"^\| 1,024 \|( \d+\.\d\d \|){3}  \| 0\.\d+ \| 0\.\d+ \|$", page, flags=re.MULTILINE)
    assert "resumed run | ok" in capsys.readouterr().out


def test_what_fails_is_told(tmp_path, monkeypatch, capsys):
    """A plan that is no better than chance, and one that is another each time, end in exit code 1; other checks go on."""
    made = np.random.default_rng(0)
    monkeypatch.setattr(torch_trees, "grow_trees", lambda points, *_, **__: made.permutation(len(points)))
    page = tmp_path / "page.md"
    assert 1 == main(["--device", "cpu", "--only", "bisect", "--rows", "512", "1024", "--write", str(page)])
    assert {"bisect, 512 rows": "FAILED", "bisect, 1,024 rows": "FAILED"} == verdicts(page.read_text())
    assert "the same seed gave another plan" in page.read_text()
    monkeypatch.setattr(torch_trees, "grow_trees", lambda points, *_, **__: np.arange(len(points)))
    assert 1 == main(["--device", "cpu", "--only", "bisect", "--rows", "1024", "--write", str(page)])
    assert "closed 0.0" in page.read_text()


def test_a_run_that_differs_is_told(tmp_path, monkeypatch):
    """Weights of a resumed run that are others than those of the whole one; a harvest of other rows."""
    hashes = iter("ab")
    monkeypatch.setattr(run_gpu, "weights_hash", lambda model: next(hashes))
    page = tmp_path / "page.md"
    assert 1 == main(["--device", "cpu", "--only", "resumed", "--write", str(page)])
    assert "the weights at the end differ" in page.read_text()
    encode = run_gpu.encode_rows
    monkeypatch.setattr(
        run_gpu, "encode_rows", lambda *args, **given: [np.roll(side, 1, axis=0) for side in encode(*args, **given)]
    )
    assert 1 == main(["--device", "cpu", "--only", "harvest, float32", "--write", str(page)])
    assert "from the CPU's, expected at most 0.001" in page.read_text()


def test_plans_on_another_device_are_told(monkeypatch, tmp_path):
    """A run on a CPU in which torch grows trees was not planned as it should be; so is one on a GPU in which none grow."""
    place = run_gpu.Place(torch.device("cuda"), tmp_path, "")
    with pytest.raises(AssertionError, match="torch planned on"), run_gpu.plans_by_torch(place):
        pass
    place = run_gpu.Place(torch.device("cpu"), tmp_path, "")
    with pytest.raises(AssertionError, match="expected none"), run_gpu.plans_by_torch(place):
        torch_trees.grow_trees(torch.ones(4, 2), 2, np.random.default_rng(0))


def test_without_the_device_nothing_runs(monkeypatch, capsys):
    """One sentence, and an exit code that is not that of a failed check."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # which the command would set, for all tests after this one
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert 2 == main([])
    told = capsys.readouterr()
    assert "" == told.out
    assert 1 == len(told.err.splitlines())
    assert "finds no cuda device here, so nothing was run" in told.err


def test_checks_that_are_not_there_are_no_success():
    """A name that no check has is a mistake."""
    assert 1 == main(["--device", "cpu", "--only", "no such check"])


def test_the_loss_of_a_plan_is_the_oracles():
    """The measure by which plans are compared."""
    rows = run_gpu.planted_rows(128)
    order = np.random.default_rng(0).permutation(128)
    expected = in_batch_quality(*(side.astype(np.float32) for side in rows), order, run_gpu.PLANNED_BATCH, 20.0)
    assert expected["train"] == pytest.approx(run_gpu.mean_loss(*rows, order), rel=1e-4)
