"""How hard "auto" makes batches: softer where the hardest ones would hold many false negatives, and nowhere else."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
from auto_hardness_job import BATCH, MATES, judging_model, paraphrases, plain, run, work
from conftest import make_pairs, make_static_model
from datasets import Dataset, DatasetDict
from forked_ranks import run_ranks
from hypothesis import given
from hypothesis import strategies as st
from recorded import weights_hash

from gcbs_st.batches.checkpoint import PLAN_FILE, read_plan
from gcbs_st.losses import GuardedMultipleNegativesRankingLoss
from gcbs_st.planners import make_planner
from gcbs_st.planners.algorithms.clusters import rows_per_cluster
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.training.auto_hardness import choose_hardness, false_share
from gcbs_st.training.rule import MASKED_AT_RANDOM, MOST_FALSE, SOFTER, supported_hardness

SOFT = rows_per_cluster(SOFTER, BATCH)
pytestmark = pytest.mark.usefixtures("one_thread")


def unit(rows):
    """Rows of length one."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def pairs_in_groups(groups=40, mates=4, noise=0.3, seed=0):
    """(n, 12) anchors and positives; rows of a group are as near to each other's positives as to their own."""
    rng = np.random.default_rng(seed)
    centers = np.repeat(rng.normal(size=(groups, 12)), mates, axis=0)
    return tuple(unit(centers + noise * rng.normal(size=centers.shape) / 4) for _ in range(2))


def count_false(pairs, batches, apart=lambda row, other: False):
    """The share by hand: pair by pair."""
    found = total = 0
    for batch in batches:
        for row in batch:
            own = float(pairs[0][row] @ pairs[1][row])
            for other in batch:
                if other == row:
                    continue
                total += 1
                limit = np.float32(own) - np.float32(0.05) * np.float32(abs(own))
                found += float(pairs[0][row] @ pairs[1][other]) > limit and not apart(row, other)
    return found / total


def planned_by_hand(pairs, size, seed):
    """All batches of all rows, as the function draws its numbers: rows first, then the plan."""
    rng = np.random.default_rng(seed)
    rng.permutation(len(pairs[0]))
    order = make_planner("bisect").plan(*pairs, size, rng)
    return order[: len(order) // size * size].reshape(-1, size)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.floats(0.05, 2.0))
def test_the_share_is_that_of_the_pairs_in_batches(seed, mates, noise):
    """Of all rows, where a sample holds them all."""
    pairs = pairs_in_groups(20, mates, noise, seed)
    expected = count_false(pairs, planned_by_hand(pairs, 8, seed))
    assert false_share(pairs, None, 8, np.random.default_rng(seed)) == pytest.approx(expected, abs=1e-3)


def test_rows_that_are_kept_apart_are_no_false_negatives():
    """With the groups told there are next to none; told of half of the groups there are those of the others."""
    pairs = pairs_in_groups()
    rows = np.arange(len(pairs[0]))
    told = Contradictions(None, None, np.arange(len(rows) + 1), (rows // 4).astype(np.int32), np.ones(len(rows), bool))
    some = rows < 80
    starts = np.concatenate([[0], np.cumsum(some)])
    half = Contradictions(None, None, starts, (rows[some] // 4).astype(np.int32), np.ones(80, bool))
    shares = [false_share(pairs, what, 8, np.random.default_rng(1)) for what in (None, half, told)]
    assert shares[0] > 1.5 * shares[1] > 1.5 * shares[2]
    assert shares[2] < 0.01


def test_a_sample_tells_as_much():
    """Of more rows than are looked at; the share is that of a plan of the sample."""
    pairs = pairs_in_groups(5000, 4)
    share = false_share(pairs, None, 16, np.random.default_rng(0))
    assert 0.1 < share < 0.25  # three of fifteen


def test_who_takes_softer_batches():
    """A transformer that can judge, of pairs whose hardest batches hold many false negatives, and nobody else."""
    true = {"static": False, "masks": False, "has_negatives": False, "at_random": 0.0, "planned": MOST_FALSE}
    assert SOFTER == supported_hardness(**true)[0]
    others = [
        {"static": True}, {"masks": True}, {"has_negatives": True}, {"at_random": MASKED_AT_RANDOM + 1e-6},
        {"planned": MOST_FALSE - 1e-6},
    ]  # fmt: skip
    answers = [supported_hardness(**{**true, **other}) for other in others]
    assert [1.0] * 5 == [hardness for hardness, _ in answers]
    assert 5 == len({why for _, why in answers})


def test_the_choice_and_its_reason():
    """From embeddings alone; a model to which all is alike is no judge."""
    pairs, rng = pairs_in_groups(), np.random.default_rng(0)
    assert SOFTER == choose_hardness(pairs, None, 8, rng, has_negatives=False)[0]
    assert 1.0 == choose_hardness(pairs, None, 8, rng, has_negatives=True)[0]
    alike = tuple(unit(side + 9) for side in pairs)
    hardness, why = choose_hardness(alike, None, 8, rng, has_negatives=False)
    assert 1.0 == hardness
    assert "no judge" in why
    anchors, positives = pairs_in_groups(160, 1)
    strangers = anchors, np.roll(positives, 1, axis=0)
    assert "no judge" in choose_hardness(strangers, None, 8, rng, has_negatives=False)[1]


# ---------------------------------------------------------------- in training


def test_a_run_is_softer_and_says_so_once(tmp_path, own_cache, caplog):
    """In all epochs, as if it had been asked for; the first plan decides, in one line."""
    with caplog.at_level(logging.INFO, "gcbs_st"):
        auto = run(tmp_path / "auto", plain(paraphrases()), replan_steps=5)
    (line,) = [one.getMessage() for one in caplog.records if "planner_hardness" in one.getMessage()]
    assert "auto composes the batches of the training set at planner_hardness=0.5. Half as hard as can be: " in line
    assert "Set planner_hardness=1 for the hardest." in line
    assert {SOFT} == set(auto.cluster_sizes)
    asked = run(tmp_path / "asked", plain(paraphrases()), replan_steps=5, planner_hardness=0.5)
    assert asked.trained == auto.trained
    assert weights_hash(asked.model) == weights_hash(auto.model)


@pytest.mark.parametrize(
    "changes",
    [
        {"planner_hardness": 1.0},
        {"planner": "bisect", "planner_view": "initial"},
        {"loss": GuardedMultipleNegativesRankingLoss},
        {"model": make_static_model},
        {"group_column": "group"},
        {"planner_columns": ["anchor"]},
    ],
    ids=[
        "asked for",
        "a planner by name",
        "a loss that masks",
        "a static model",
        "groups that are told",
        "one column",
    ],
)
def test_others_are_as_hard_as_can_be(tmp_path, own_cache, caplog, changes):
    """And nothing is said of it."""
    changes = dict(changes)
    rows = paraphrases() if "group_column" in changes else plain(paraphrases())
    model = changes.pop("model", judging_model)()
    with caplog.at_level(logging.INFO, "gcbs_st"):
        trainer = run(tmp_path, rows, model, num_train_epochs=1, **changes)
    assert [BATCH] == trainer.cluster_sizes
    assert "planner_hardness=0.5." not in caplog.text


def test_rows_with_negatives_of_their_own(tmp_path, own_cache):
    """Are composed as hard as can be."""
    rows = plain(paraphrases())
    rows = rows.add_column("negative", rows["positive"][::-1])
    assert [BATCH] == run(tmp_path, rows, num_train_epochs=1).cluster_sizes


def test_each_dataset_by_itself(tmp_path, own_cache):
    """Paraphrases softer, others hard; a dataset of one text stays random and is asked nothing."""
    texts = make_pairs(160)["anchor"]
    one_text = Dataset.from_dict({"anchor": texts, "positive": texts})
    rows = DatasetDict(alike=plain(paraphrases(240)), other=make_pairs(240), single=one_text)
    samplers = run(tmp_path, rows, num_train_epochs=1).planned_samplers
    assert {"alike": SOFTER, "other": 1.0, "single": None} == {name: one.hardness for name, one in samplers.items()}


def test_warm_up_comes_before_the_choice(tmp_path, own_cache):
    """Which is made when the first plan is."""
    trainer = run(tmp_path, plain(paraphrases()), planner_warmup_steps=10)
    assert [SOFT, SOFT] == trainer.cluster_sizes


def test_streams_choose_by_window(tmp_path, own_cache):
    """Each of which is planned as a training set of its own."""
    stream = plain(paraphrases()).to_iterable_dataset()
    trainer = run(tmp_path, stream, planning_window=240, max_steps=30)
    assert [SOFT, SOFT] == trainer.cluster_sizes[:2]


@pytest.mark.parametrize("step", [10, 30, 40])
def test_a_resumed_run_keeps_the_choice(tmp_path, own_cache, monkeypatch, step):
    """From the middle of an epoch, its end and the next one: it is made once in a run."""
    rows = plain(paraphrases())
    whole = run(tmp_path / "whole", rows, replan_steps=7, save_strategy="steps", save_steps=10)
    checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
    assert SOFTER == read_plan(checkpoint)[0][""]["hardness"]
    shutil.copytree(checkpoint, tmp_path / "resumed" / checkpoint.name)

    def choose(*args, **kwargs):
        raise AssertionError("chosen again")

    monkeypatch.setattr("gcbs_st.training.auto.choose_hardness", choose)
    resumed = run(tmp_path / "resumed", rows, replan_steps=7, resume=True)
    assert [one for one in whole.trained if one[0] > step] == resumed.trained
    assert weights_hash(whole.model) == weights_hash(resumed.model)


def test_checkpoints_of_before(tmp_path, own_cache):
    """Hold no choice: it is made at the next plan."""
    rows = plain(paraphrases())
    whole = run(tmp_path, rows, replan_steps=7, save_strategy="steps", save_steps=10, max_steps=10)
    state = read_plan(tmp_path / "checkpoint-10")[0][""]
    sampler = whole.planned_samplers[""]
    sampler.load_state_dict({key: value for key, value in state.items() if key != "hardness"})
    assert sampler.hardness is None
    assert (tmp_path / "checkpoint-10" / PLAN_FILE).is_file()


def test_a_second_training_chooses_anew(tmp_path, own_cache):
    """By the model and rows of then."""
    trainer = run(tmp_path, plain(paraphrases()), num_train_epochs=1)
    trainer.train_dataset = make_pairs(480)
    trainer.train()
    assert [SOFT, BATCH] == trainer.cluster_sizes


def test_two_ranks_agree(tmp_path):
    """On what the main one chose, whether or not their batches are contrasted together."""
    run_ranks(work, 2, tmp_path, folder=tmp_path)
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2))
    for way, size in (("False", BATCH), ("True", 2 * BATCH)):
        soft = rows_per_cluster(SOFTER, size)
        assert SOFTER == first[way]["hardness"] == second[way]["hardness"]
        assert soft == first[way]["in_force"] == second[way]["in_force"]
        assert {soft} == set(first[way]["clusters"])
        assert first[way]["weights"] == second[way]["weights"]
    assert MATES < BATCH
