"""What each process of ``test_stream.py`` runs: trains on a stream, resumes, and writes down what it trained on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import make_pairs, make_static_model
from recorded import RecordingTrainer, weights_hash
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainingArguments

RANKS, BATCH, WINDOW, ROWS = 2, 4, 32, 80


def train(output: Path, resume: str | None = None, seed: int = 0, **given: Any) -> RecordingTrainer:
    """Twenty steps, two passes over the stream."""
    model = make_static_model()
    args = GCBSTrainingArguments(
        str(output), per_device_train_batch_size=BATCH, max_steps=20, planning_window=WINDOW, learning_rate=1e-2,
        use_cpu=True, report_to="none", disable_tqdm=True, planner="bisect", seed=3, **given,
    )  # fmt: skip
    rows = make_pairs(ROWS, seed=seed).to_iterable_dataset()
    trainer = RecordingTrainer(model, args, rows, loss=MultipleNegativesRankingLoss(model))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def seen_by(trainer: RecordingTrainer) -> dict[str, Any]:
    """The rows of each batch, and a hash of the weights."""
    ids = {tuple(row.values()): i for i, row in enumerate(make_pairs(ROWS))}
    trained = [[step, [ids[texts] for texts in batch]] for step, batch in trainer.trained]
    return {"trained": trained, "weights": weights_hash(trainer.model)}


def work(output: Path) -> None:
    """Trains once from the start and then from several checkpoints, and writes `rank_R.json`."""
    torch.set_num_threads(1)
    whole = train(output / "whole", save_steps=1)
    result: dict[str, Any] = {"whole": seen_by(whole), "resumed": {}}
    result["closed"] = [entry["gcbs/closed"] for entry in whole.state.log_history if "gcbs/closed" in entry]
    for step in (3, 4, 10, 13):
        checkpoint = str(output / "whole" / f"checkpoint-{step}")
        result["resumed"][step] = seen_by(train(output / "more", checkpoint, save_strategy="no"))
    try:
        train(output / "differing", seed=int(os.environ["RANK"]), save_strategy="no")
        result["differing"] = "nothing"
    except Exception as error:
        result["differing"] = f"{type(error).__name__}: {error}"
    (output / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
