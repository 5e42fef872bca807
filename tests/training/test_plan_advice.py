"""What a first plan warns of: once each, and of nothing where there is nothing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from conftest import WORDS, make_pairs, make_static_model
from datasets import Dataset, DatasetDict, concatenate_datasets
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    GISTEmbedLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.losses import GuardedMultipleNegativesRankingLoss
from gcbs_st.training.loss_facts import masks_negatives

B = 8
pytestmark = pytest.mark.usefixtures("one_thread")


class AsTheyCome:
    """A planner whose batches are no harder than random ones."""

    def plan(self, anchors, positives, batch_size, rng):
        return rng.permutation(len(anchors))


def warned(caplog, folder, rows, loss=None, **given) -> list[str]:
    """What a run of two epochs warns of."""
    model = make_static_model()
    options = {"per_device_train_batch_size": B, "num_train_epochs": 2, "save_strategy": "no", **given}
    args = GCBSTrainingArguments(str(folder), report_to="none", disable_tqdm=True, use_cpu=True, **options)
    made = MultipleNegativesRankingLoss(model) if loss is None else loss(model)
    with caplog.at_level(logging.WARNING, "gcbs_st"):
        GCBSTrainer(model, args, rows, loss=made).train()
    return [record.getMessage() for record in caplog.records if record.name.startswith("gcbs_st")]


def paraphrases(rows: int = 800) -> Dataset:
    """Rows in eights of the same five words, each with a positive of four of them, which fits its seven mates as well."""
    rng = np.random.default_rng(1)
    anchors, positives = [], []
    for _ in range(rows // 8):
        words = rng.choice(WORDS, 5, replace=False)
        for i in range(8):
            anchors.append(" ".join(rng.permutation(words)))
            positives.append(" ".join([*rng.permutation(words)[:4], *["w0"] * (i % 2)]))
    return Dataset.from_dict({"anchor": anchors, "positive": positives})


def test_ordinary_rows_warn_of_nothing(caplog, tmp_path):
    """Pairs of different texts, of a planner that composes batches."""
    assert [] == warned(caplog, tmp_path, make_pairs(400))


def test_probable_false_negatives(caplog, tmp_path):
    """Once in two epochs, with what helps; the name of a group column is asked for where there is none."""
    (message,) = warned(caplog, tmp_path, paraphrases(), planner="bisect")
    assert "% of a row's negatives score above its own positive" in message
    assert "Name a group_column" in message


def test_a_guarded_loss_deals_with_them(caplog, tmp_path):
    """And needs no advice."""
    assert [] == warned(caplog, tmp_path, paraphrases(), GuardedMultipleNegativesRankingLoss, planner="bisect")


def test_losses_that_mask(bert_folder):
    """A margin, or a guide, also where another loss wraps it; not a margin that masks nothing."""
    model = SentenceTransformer(bert_folder, device="cpu")
    guarded = GuardedMultipleNegativesRankingLoss(model)
    assert masks_negatives(guarded)
    assert masks_negatives(MatryoshkaLoss(model, guarded, [8]))
    assert masks_negatives(GISTEmbedLoss(model, SentenceTransformer(bert_folder, device="cpu")))
    for loss in (
        MultipleNegativesRankingLoss(model),
        GuardedMultipleNegativesRankingLoss(model, margin=None),
        GuardedMultipleNegativesRankingLoss(model, margin=float("inf")),
    ):
        assert not masks_negatives(loss)


def test_a_model_that_finds_all_alike_is_no_judge(caplog, tmp_path):
    """What it takes for false tells nothing, also of random batches."""
    rows = paraphrases()
    alike = rows.map(lambda row: {"positive": row["positive"], "anchor": "w1 w2 w3 " * 9 + row["anchor"]})
    assert [] == [message for message in warned(caplog, tmp_path, alike, planner="bisect") if "false" in message]


def test_a_plan_that_closes_nothing(caplog, tmp_path):
    """At full hardness only: softer batches are meant to be softer."""
    (message,) = warned(caplog, tmp_path, make_pairs(400), planner=AsTheyCome())
    assert "AsTheyCome makes batches that are hardly harder than random" in message
    caplog.clear()
    assert [] == warned(caplog, tmp_path, make_pairs(400), planner="bisect", planner_hardness=0.2)
    assert [] == warned(caplog, tmp_path, make_pairs(400), planner="random", planner_options={"measure": True})


def test_rows_in_no_batch(caplog, tmp_path):
    """A planner that draws rows again leaves others out."""
    options = {"exact_cover": False, "candidates": 20, "neighbors": 5}
    found = warned(caplog, tmp_path, make_pairs(400), planner="random_walk", planner_options=options)
    (message,) = [message for message in found if "in no batch" in message]
    assert "of 400 rows" in message
    assert "random_walk draws others again" in message


def test_rows_that_repeat_others(caplog, tmp_path):
    """Counted by all texts of a row: triplets that share a pair and not the negative are no repeats."""
    pairs = make_pairs(200)
    (message,) = warned(caplog, tmp_path, concatenate_datasets([pairs, pairs.select(range(5))]))
    assert "5 of the 205 rows of the training set repeat the texts of an earlier row" in message
    caplog.clear()
    mined = concatenate_datasets([pairs, pairs]).add_column("negative", [f"w9 {i}" for i in range(400)])
    assert [] == [message for message in warned(caplog, tmp_path, mined) if "repeat" in message]


def test_each_dataset_is_advised_on(caplog, tmp_path):
    """By its name."""
    pairs = make_pairs(200)
    rows = DatasetDict({"one": pairs, "two": concatenate_datasets([pairs, pairs.select(range(8))])})
    (message,) = warned(caplog, tmp_path, rows)
    assert "8 of the 208 rows of the training set 'two' repeat" in message
