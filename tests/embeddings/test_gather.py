"""What the ranks send to the one that plans."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from forked_ranks import run_ranks

from gcbs_st.ranks import gather_rows


def gather_from_the_last(folder: Path) -> None:
    """Of two ranks the last has two rows; the first has none, and does not know their width."""
    PartialState(cpu=True)
    own = np.zeros((0, 0), np.float32) if os.environ["RANK"] == "0" else np.ones((2, 5), np.float32)
    gathered = gather_rows(own, 2, torch.device("cpu"))
    (folder / f"rank_{os.environ['RANK']}").write_text(str(gathered.tolist()))


def test_a_rank_without_rows(tmp_path):
    """It takes part all the same."""
    run_ranks(gather_from_the_last, 2, tmp_path, folder=tmp_path, seconds=90)
    assert str([[1.0] * 5] * 2) == (tmp_path / "rank_0").read_text()
    assert "[]" == (tmp_path / "rank_1").read_text()
