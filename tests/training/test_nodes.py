"""Two simulated nodes of two ranks, with no folder in common, train and resume as one node of four."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked_ranks import run_ranks
from nodes_job import BATCH, RANKS, work


def launch(folder: Path, nodes: int) -> list[dict]:
    """What each rank wrote down."""
    folder.mkdir()
    run_ranks(work, RANKS, folder, nodes, folder=folder)
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.slow
def test_two_nodes_train_as_one(tmp_path):
    """The same batches on each rank, the same weights, and a resumed run as if it had not been stopped."""
    together, apart = launch(tmp_path / "one", 1), launch(tmp_path / "two", 2)
    for one, other in zip(together, apart, strict=True):
        for source in ("encode", "harvest"):
            assert one[source]["whole"] == other[source]["whole"], source
            for step, resumed in other[source]["resumed"].items():
                left = [entry for entry in one[source]["whole"]["trained"] if entry[0] > int(step)]
                assert left and left == resumed["trained"], (source, step)
                assert one[source]["whole"]["weights"] == resumed["weights"], (source, step)
    steps = [rank["encode"]["whole"]["trained"][0][1] for rank in apart]
    assert RANKS * BATCH == len({row for batch in steps for row in batch})
    assert not (tmp_path / "two" / "node0").samefile(tmp_path / "two" / "node1")
    assert (tmp_path / "two" / "node1" / "encode" / "checkpoint-6" / "gcbs_plan.npz").is_file()
