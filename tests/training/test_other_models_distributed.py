"""Tests of sparse and late-interaction models on two processes that really are two, see ``other_models_job.py``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from forked_ranks import run_ranks
from other_models import B, save_bert
from other_models_job import ROWS, kinds, work
from transformers import BertForMaskedLM, BertModel

# The matrix of what works has a run of each kind of model on two processes in the default tests.
pytestmark = pytest.mark.slow

STEPS = ROWS // B // 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each rank wrote down."""
    folder = tmp_path_factory.mktemp("other_models")
    for name, bert in (("sparse", BertForMaskedLM), ("late", BertModel)):
        save_bert(folder / name, bert, dropout=0.2)
        save_bert(folder / f"{name} still", bert, dropout=0.0)
    run_ranks(work, 2, folder, folder=folder)
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]


RUNS = [f"{name}_{source}" for name in kinds() for source in ("encode", "harvest")]


@pytest.mark.parametrize("name", RUNS)
def test_ranks_share_an_epoch_and_its_plans(ranks, name):
    """Each row on one rank at most, once an epoch; the main process plans, in whole steps of both; equal weights."""
    seen = [rank[name]["whole"] for rank in ranks]
    assert [2 * STEPS] * 2 == [len(one["trained"]) for one in seen]
    for epoch in range(2):
        drawn = [row for one in seen for batch in one["trained"][epoch * STEPS : (epoch + 1) * STEPS] for row in batch]
        assert len(drawn) == len(set(drawn)) == 2 * STEPS * B
    assert seen[0]["plans"]
    assert [] == seen[1]["plans"]
    assert {0} == {rows % (2 * B) for rows in seen[0]["plans"]} or name.endswith("harvest")
    assert seen[0]["weights"] == seen[1]["weights"]


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_bitwise_the_same(ranks, name):
    """From the middle of the second epoch: same batches on each rank, same weights."""
    for rank in ranks:
        whole, resumed = rank[name]["whole"], rank[name]["resumed"]
        assert whole["trained"][9:] == resumed["trained"]
        assert whole["weights"] == resumed["weights"]


@pytest.mark.parametrize("kind", kinds())
def test_rows_of_all_ranks_are_harvested(ranks, kind):
    """With a model that does not change, the main process has what encoding gives, of the rows of both."""
    still = ranks[0][f"{kind}_still"]
    assert still["seen"] >= 2 * STEPS * B
    assert still["error"] < 1e-5
