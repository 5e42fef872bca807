"""Tests of models whose weights are spread over the processes, on two that really are two; see ``sharded_job.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_ranks import run_ranks
from sharded_job import BATCH, EPOCHS, RESUMED, work

RANKS, STEPS = 2, 6


def launch(folder: Path, model_folder: str, what: str) -> list[dict[str, Any]]:
    """What each rank wrote down."""
    run_ranks(work, RANKS, model_folder, folder, what, folder=folder)
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module", params=["FULL_STATE_DICT", pytest.param("SHARDED_STATE_DICT", marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory, bert_folder):
    """What each rank saw of runs with checkpoints of one kind."""
    return launch(tmp_path_factory.mktemp("sharded"), bert_folder, request.param)


@pytest.fixture(scope="module")
def others(tmp_path_factory, bert_folder):
    """What each rank saw of other runs, and what the main one printed."""
    folder = tmp_path_factory.mktemp("others")
    return launch(folder, bert_folder, "in other ways"), (folder / "log_0").read_text()


def test_it_trains_as_without_shards(ranks):
    """FSDP2 draws the batches of DDP, plans from what was harvested as DDP does, and comes to the same weights."""
    for rank in ranks:
        alone, sharded = rank["DDP"], rank["FSDP"]
        assert alone["trained"] == sharded["trained"]
        assert EPOCHS * STEPS == len(sharded["trained"])
        assert sharded["same model"]
        assert (0.0, 0.5) == (alone["share"], pytest.approx(sharded["share"], abs=0.1))
    alone, sharded = ranks[0]["DDP"], ranks[0]["FSDP"]
    assert [STEPS, 2 * STEPS] == alone["plans"] == sharded["plans"]
    assert alone["ages"] == sharded["ages"]
    np.testing.assert_allclose(sharded["losses"], alone["losses"], rtol=0, atol=1e-5)
    assert ranks[0]["off DDP"] < 1e-5


def test_a_resumed_run_equals_one_that_was_not_stopped(ranks):
    """From checkpoints before, at and after a plan: the same batches on each rank, and the same weights."""
    for rank in ranks:
        for step in map(str, RESUMED):
            whole, resumed = rank["FSDP"], rank["resumed"][step]
            assert [entry for entry in whole["trained"] if entry[0] > int(step)] == resumed["trained"], step
    assert all(ranks[0]["resumed"][str(step)]["off"] < 1e-6 for step in RESUMED)


def test_what_is_saved_are_whole_weights(ranks, request):
    """A model that was saved, and that of a checkpoint, holds all of the weights; its card names the method."""
    if "SHARDED" in request.node.name:
        pytest.skip("the host saves no model then, only shards to be resumed from")
    assert [0.0, 0.0] == ranks[0]["saved off"]
    assert ranks[0]["card"]


def test_a_sharded_model_is_trained_again(ranks):
    """A second call of `train` takes the model as the first left it."""
    assert [EPOCHS * STEPS] * RANKS == [rank["trained again"] for rank in ranks]


def test_where_nothing_can_be_harvested_batches_stay_random(others):
    """No process waits for another: nothing is encoded, one warning says so, and each row is drawn once an epoch."""
    seen, printed = others
    assert 1 == printed.count("Batches stay random")
    assert [] == seen[0]["hidden"]["plans"]
    drawn = [batch for rank in seen for step, batch in rank["hidden"]["trained"] if step > STEPS]
    assert RANKS * STEPS * BATCH == len({row for batch in drawn for row in batch})


def test_in_half_precision_beside_a_guide(others):
    """The model is handed copies of its input then, and its embeddings are harvested all the same; the best is loaded."""
    seen, _ = others
    assert [STEPS] == seen[0]["guided"]["plans"]
    assert seen[0]["guided"]["off best"] == 0.0


def test_another_model_is_planned_on(others):
    """A reference is whole on each process, so that it embeds rows before the first step, as ever."""
    seen, _ = others
    assert [0, STEPS] == seen[0]["reference"]["plans"]
    assert [2 * STEPS] * RANKS == [len(rank["reference"]["trained"]) for rank in seen]


def test_what_needs_whole_weights_is_refused_on_all_ranks(others):
    """Before anything is trained, with the way named."""
    for rank in others[0]:
        assert "Use embedding_source='harvest', first_plan='random', or DDP" in rank["refused"]
