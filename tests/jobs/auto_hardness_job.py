"""A run of `planner="auto"` on rows whose hardest batches hold many false negatives; in one process or in each of several."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from conftest import VOCABULARY, WORDS, word_tokenizer
from datasets import Dataset
from recorded import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from gcbs_st import GCBSTrainingArguments

BATCH, MATES = 16, 8


class Judge(StaticEmbedding):
    """Averages word vectors, and is not taken for a static model: it stands for a transformer that can judge."""


def judging_model() -> SentenceTransformer:
    """A new one, the same each time; draws no global number."""
    weights = np.random.default_rng(0).normal(size=(len(VOCABULARY), 16)).astype(np.float32)
    return SentenceTransformer(modules=[Judge(word_tokenizer(), embedding_weights=weights)], device="cpu")


def paraphrases(rows: int = 480) -> Dataset:
    """Rows in eights of the same five words, each with a positive of four of them, which fits its seven mates as well."""
    rng = np.random.default_rng(1)
    anchors, positives = [], []
    for _ in range(rows // MATES):
        words = rng.choice(WORDS, 5, replace=False)
        for _ in range(MATES):
            anchors.append(" ".join(rng.permutation(words)))
            positives.append(" ".join(rng.permutation(words)[:4]))
    groups = [f"group {row // MATES}" for row in range(len(anchors))]
    return Dataset.from_dict({"anchor": anchors, "positive": positives, "group": groups})


class KeepingTrainer(RecordingTrainer):
    """Keeps the cluster size of each plan."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cluster_sizes: list[int] = []
        plan = self.replanner.plan_rows

        def plan_rows(*given: Any) -> Any:
            self.cluster_sizes.append(given[-1])
            return plan(*given)

        self.replanner.plan_rows = plan_rows


def run(
    folder: Path, rows: Any, model: Any = None, loss: Any = None, resume: Any = None, **given: Any
) -> KeepingTrainer:
    """Two epochs, planned once each, or as the arguments say."""
    model = judging_model() if model is None else model
    defaults = {
        "per_device_train_batch_size": BATCH, "num_train_epochs": 2, "planner": "auto", "learning_rate": 1e-2,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    args = GCBSTrainingArguments(str(folder), **{**defaults, **given})
    trainer = KeepingTrainer(model, args, rows, loss=(loss or MultipleNegativesRankingLoss)(model))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def plain(rows: Dataset) -> Dataset:
    """Without the groups."""
    return rows.remove_columns("group")


def work(folder: Path) -> None:
    """Writes what a rank has trained, of batches that are and are not contrasted with those of the other ranks."""
    logging.getLogger("gcbs_st").setLevel(logging.ERROR)
    told = {}
    for gathers in (False, True):

        def loss(model: Any, gathers: bool = gathers) -> Any:
            return MultipleNegativesRankingLoss(model, gather_across_devices=gathers)

        trainer = run(folder / f"run_{gathers}", plain(paraphrases()), loss=loss, replan_steps=4)
        sampler = trainer.planned_samplers[""]
        told[str(gathers)] = {
            "hardness": sampler.hardness,
            "clusters": trainer.cluster_sizes,
            "in_force": sampler.cluster_size,
            "weights": weights_hash(trainer.model),
        }
    (folder / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(told))
