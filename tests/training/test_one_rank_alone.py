"""What a user may call on one rank must not wait for the others: two real processes, of which one does more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_pairs, make_static_model
from forked_ranks import run_ranks
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from gcbs_st import EMC2Loss, GCBSTrainer, GCBSTrainingArguments


class SavesBest(TrainerCallback):
    """Saves the model on the main process, under a name that looks like a checkpoint's, and asks for a loader."""

    def __init__(self, trainer: GCBSTrainer, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step == 3:
            self.trainer.save_model(str(self.folder / "checkpoint-best"))
            self.trainer.training_set_fingerprint()
            self.trainer.log({"note": 1.0})


def train(folder: str, loss: str) -> None:
    """What each rank runs."""
    model, rows = make_static_model(), make_pairs(64)
    args = GCBSTrainingArguments(
        folder, per_device_train_batch_size=4, num_train_epochs=1, report_to="none", disable_tqdm=True, use_cpu=True,
        embedding_source="harvest", planner="bisect", replan_steps=2, save_steps=4,
    )  # fmt: skip
    made = EMC2Loss(model) if loss == "EMC2Loss" else MultipleNegativesRankingLoss(model)
    trainer = GCBSTrainer(model, args, rows, loss=made)
    if trainer.is_world_process_zero():
        # Before training, as one may who wants to know how many steps there will be.
        assert 8 == len(trainer.get_train_dataloader())
        trainer.save_model(f"{folder}/checkpoint-0")
    trainer.add_callback(SavesBest(trainer, Path(folder)))
    trainer.train()
    if trainer.is_world_process_zero():
        trainer.save_model(f"{folder}/checkpoint-after")
        Path(folder, "done.json").write_text(json.dumps(trainer.state.global_step))


@pytest.mark.parametrize("loss", ["MultipleNegativesRankingLoss", "EMC2Loss"])
def test_one_rank_saves_and_looks_alone(tmp_path, loss):
    """Under any name, before, in and after training; the others are not waited for, and checkpoints are whole."""
    run_ranks(train, 2, str(tmp_path), loss, folder=tmp_path, seconds=90)
    assert 8 == json.loads((tmp_path / "done.json").read_text())
    for name in ("checkpoint-best", "checkpoint-0", "checkpoint-after"):
        assert (tmp_path / name / "modules.json").is_file()
        assert not (tmp_path / name / "gcbs_plan.npz").exists()
    for name in ("checkpoint-4", "checkpoint-8"):
        assert (tmp_path / name / "gcbs_plan.npz").is_file()
        assert (tmp_path / name / "gcbs_embeddings" / "0" / "store.json").is_file()
