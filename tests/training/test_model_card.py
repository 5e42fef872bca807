"""Tests of ``gcbs_st.training.model_card``: what the README of a saved model says of how its batches came about."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import make_pairs, make_static_model
from other_models import QUIET, make_colbert, make_word_counter
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss

import gcbs_st
from gcbs_st import (
    EMC2Loss,
    GCBSSparseEncoderTrainer,
    GCBSSparseEncoderTrainingArguments,
    GCBSTrainer,
    GCBSTrainingArguments,
    planners,
)
from gcbs_st.losses import SogCLRLoss
from gcbs_st.planners import GCBSPlanner, available, make_planner, name_of, register

METHOD, NGAME, WALK, B3 = "2210.12874", "2207.04452", "2306.03355", "2505.11293"


pytestmark = pytest.mark.usefixtures("one_thread")


def card(trainer: Any, folder: Path) -> tuple[dict[str, Any], str]:
    """The data at the head of the saved model's README, and its text."""
    trainer.model.model_card_data.local_files_only = True
    trainer.model.save_pretrained(str(folder / "saved"))
    text = (folder / "saved" / "README.md").read_text()
    return yaml.safe_load(text.split("---")[1]), text


def trained(folder: Path, trainer_class: Any = GCBSTrainer, loss: Any = MultipleNegativesRankingLoss, **given: Any):
    """A trainer of a dense model that has trained to the end."""
    model = make_static_model()
    args = GCBSTrainingArguments(str(folder), **{**QUIET, **given})
    trainer = trainer_class(model, args, make_pairs(32), loss=loss(model))
    trainer.train()
    return trainer


def hyperparameters(text: str) -> dict[str, str]:
    """Those that the card lists as not being the defaults."""
    listed = text.split("#### Non-Default Hyperparameters")[1].split("#### All Hyperparameters")[0]
    return dict(re.findall(r"^- `(\w+)`: (.*)$", listed, flags=re.MULTILINE))


def papers(text: str) -> set[str]:
    """The arXiv numbers of those that are cited and that concern batches."""
    cited = text.split("### BibTeX")[1]
    return {number for number in (METHOD, NGAME, WALK, B3) if number in cited}


EXPECTED = {
    "gcbs": {METHOD}, "tbs": {METHOD}, "random_walk": {WALK}, "bisect": {NGAME}, "best": {NGAME},
    "partition": {B3}, "random": set(), "hobit": {METHOD},
}  # fmt: skip


def test_every_planner_is_in_the_table():
    """A new planner has to say what to cite."""
    assert set(EXPECTED) == set(available())


@pytest.mark.parametrize("planner", EXPECTED)
def test_the_card_names_method_options_and_paper(tmp_path, planner):
    """The tags, the options that are not the defaults, and the papers, beside those of the host; nothing of random ones."""
    trainer = trained(tmp_path, planner=planner, replan_steps=0.5)
    head, text = card(trainer, tmp_path)
    ours = [tag for tag in head["tags"] if tag == "gcbs_st" or tag.startswith("planner:")]
    assert ours == ([] if planner == "random" else ["gcbs_st", "planner:" + planner.replace("_", "-")])
    assert EXPECTED[planner] == papers(text)
    assert (planner != "random") == (f"version={{{gcbs_st.__version__}}}" in text)
    assert {"generated_from_trainer", "loss:MultipleNegativesRankingLoss"} <= set(head["tags"])
    assert trainer.loss.citation.strip() in text
    assert "Sentence-BERT" in text
    listed = hyperparameters(text)
    assert "0.5" == listed["replan_steps"]
    assert "planner" in listed


def test_all_options_of_ours_that_are_no_defaults_are_listed(tmp_path):
    """With their values as they are."""
    given = {
        "planner": "gcbs", "planner_options": {"quantile": 0.99}, "planner_columns": ["positive", "anchor"],
        "replan_steps": 2.0, "planner_warmup_steps": 1, "embedding_batch_size": 4, "embedding_source": "harvest",
        "first_plan": "encode", "embedding_max_age": 5, "embedding_budget": 9, "embedding_dtype": "float16",
        "embedding_storage": "disk", "shuffle_planned_batches": False,
    }  # fmt: skip
    listed = hyperparameters(card(trained(tmp_path, **given), tmp_path)[1])
    assert {name: str(value) for name, value in given.items()} == {
        name: value for name, value in listed.items() if name in given
    }


class Own:
    """A planner of the user's."""

    def plan(self, anchors, positives, batch_size, rng):
        return np.arange(len(anchors))


def test_own_planners(tmp_path, monkeypatch):
    """An object is named as its class, one of ours as what it is registered as; a name of the user's is a name."""
    for planner, expected in ((Own(), "planner:Own"), (GCBSPlanner(), "planner:gcbs")):
        assert expected in card(trained(tmp_path, planner=planner), tmp_path)[0]["tags"]
    monkeypatch.setattr("gcbs_st.planners._REGISTRY", dict(planners._REGISTRY))
    register("one_by_one")(Own)
    head, text = card(trained(tmp_path, planner="one_by_one"), tmp_path)
    assert "planner:one-by-one" in head["tags"]
    assert set() == papers(text), "nobody knows what it comes from"
    assert available() == sorted(name_of(make_planner(name)) for name in available())


@pytest.mark.parametrize("loss, number", [(EMC2Loss, "2404.10575"), (SogCLRLoss, "2202.12387")])
def test_our_losses_are_cited(tmp_path, loss, number):
    """Beside the planner."""
    head, text = card(trained(tmp_path, loss=loss), tmp_path)
    assert number in text.split("### BibTeX")[1]
    assert {f"loss:{loss.__name__}", "gcbs_st"} <= set(head["tags"])


def test_a_trainer_that_did_not_train_claims_nothing(tmp_path):
    """The card of the model that it was given says nothing of batches."""
    model = make_static_model()
    args = GCBSTrainingArguments(str(tmp_path), **QUIET)
    trainer = GCBSTrainer(model, args, make_pairs(32), loss=MultipleNegativesRankingLoss(model))
    head, text = card(trainer, tmp_path)
    assert "gcbs_st" not in head["tags"]
    assert set() == papers(text)


def test_a_loss_that_no_batch_can_help_claims_nothing(tmp_path):
    """Its batches are the host's."""
    model, rows = make_static_model(), make_pairs(32).add_column("score", [0.5] * 32)
    args = GCBSTrainingArguments(str(tmp_path), planner="bisect", **QUIET)
    trainer = GCBSTrainer(model, args, rows, loss=CosineSimilarityLoss(model))
    trainer.train()
    head, text = card(trainer, tmp_path)
    assert "gcbs_st" not in head["tags"]
    assert set() == papers(text)


def test_a_card_of_another_library_stops_no_training(tmp_path, caplog):
    """SetFit's has no tags to add to."""

    class OtherCard:
        def __init__(self, card: Any) -> None:
            self.card = card

        def __getattr__(self, name: str) -> Any:
            if name == "add_tags":
                raise AttributeError(name)
            return getattr(self.card, name)

    model = make_static_model()
    args = GCBSTrainingArguments(str(tmp_path), planner="bisect", **QUIET)
    trainer = GCBSTrainer(model, args, make_pairs(32), loss=MultipleNegativesRankingLoss(model))
    model.model_card_data = OtherCard(model.model_card_data)
    assert 4 == trainer.train().global_step
    assert 1 == sum("The model card does not say" in record.getMessage() for record in caplog.records)


def test_the_last_training_counts_once(tmp_path):
    """Training twice adds nothing twice."""
    trainer = trained(tmp_path, planner="bisect")
    trainer.train()
    head, text = card(trainer, tmp_path)
    assert 1 == head["tags"].count("gcbs_st")
    assert 1 == text.count(f"eprint={{{NGAME}}}")


def test_cards_of_other_models(tmp_path):
    """Sparse and late-interaction models have templates of their own, which say the same."""
    model = make_word_counter()
    args = GCBSSparseEncoderTrainingArguments(str(tmp_path), planner="bisect", projection_dimensions=64, **QUIET)
    sparse = GCBSSparseEncoderTrainer(model, args, make_pairs(32))
    pytest.importorskip("sentence_transformers.multi_vector_encoder", reason="this host has no MultiVectorEncoder")
    from gcbs_st import GCBSMultiVectorEncoderTrainer, GCBSMultiVectorEncoderTrainingArguments

    model = make_colbert(tmp_path / "model")
    args = GCBSMultiVectorEncoderTrainingArguments(str(tmp_path), planner="bisect", **QUIET)
    late = GCBSMultiVectorEncoderTrainer(model, args, make_pairs(32))
    for trainer in (sparse, late):
        trainer.train()
        head, text = card(trainer, tmp_path)
        assert {"gcbs_st", "planner:bisect"} <= set(head["tags"])
        assert {NGAME} == papers(text)
        assert "bisect" == hyperparameters(text)["planner"]
        assert (trainer is sparse) == ("projection_dimensions" in hyperparameters(text))
