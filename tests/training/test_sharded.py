"""Tests of models whose weights are spread over the processes, on two that really are two; see ``sharded_job.py``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from forked_ranks import run_ranks
from sharded_job import EPOCHS, RESUMED, work

RANKS, STEPS = 2, 6
STATES = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, bert_folder):
    """What each rank saw of the same runs."""
    folder = tmp_path_factory.mktemp("sharded")
    run_ranks(work, RANKS, bert_folder, folder, folder=folder)
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("state", STATES)
def test_it_trains_as_without_shards(ranks, state):
    """FSDP2 draws the batches of DDP, plans from harvested embeddings as it does, and comes to the same losses."""
    for rank in ranks:
        alone, whole = rank["DDP"], rank[state]["whole"]
        print(state, np.abs(np.array(alone["losses"]) - whole["losses"]).max() if alone["losses"] else None, rank[state]["off DDP"], whole["kind"], [ (s, r["off"]) for s, r in rank[state]["resumed"].items()], rank[state].get("saved off"), alone["losses"], whole["losses"])
