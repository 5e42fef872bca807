"""What each process of ``test_distributed.py`` runs: trains, resumes, and writes down what it trained on.

python -m torch.distributed.run --nproc_per_node=2 tests/distributed_job.py BERT_FOLDER OUTPUT_FOLDER WORKERS
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import make_pairs
from kill_and_resume import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from gcbs_st import GCBSTrainingArguments

ROWS, BATCH, EPOCHS = 109, 8, 2  # 13 batches an epoch, of which the ranks draw 12 in 6 steps


class PlannedTrainer(RecordingTrainer):
    """Keeps the rows in the order in which they were planned, before batches were shuffled; on rank 0 alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plans: list[dict[str, Any]] = []

    def _plan_rows(self, *args: Any) -> Any:
        rows = super()._plan_rows(*args)
        self.plans.append({"step": self.state.global_step, "rows": rows.tolist()})
        return rows


class Orders(TrainerCallback):
    """The sampler's order and cursor after each event at which plans are made."""

    def __init__(self, trainer: PlannedTrainer) -> None:
        self.trainer, self.seen = trainer, []

    def look(self, state: Any) -> None:
        sampler = self.trainer.planned_samplers[""]
        self.seen.append([state.global_step, sampler.cursor, sampler.order.tolist()])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.look(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.look(state)


def run(model_folder: str, output: Path, workers: int, resume: str | None = None, **given: Any) -> dict[str, Any]:
    """One training, from the start or a checkpoint; what this process saw of it."""
    model = SentenceTransformer(model_folder, device="cpu")
    args = GCBSTrainingArguments(
        str(output), per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS, learning_rate=1e-3, use_cpu=True,
        replan_steps=2, save_steps=1, dataloader_num_workers=workers, report_to="none", disable_tqdm=True, **given,
    )  # fmt: skip
    rows = make_pairs(ROWS)
    ids = {tuple(row.values()): i for i, row in enumerate(rows)}
    trainer = PlannedTrainer(model, args, rows, loss=MultipleNegativesRankingLoss(model))
    orders = Orders(trainer)
    trainer.add_callback(orders)
    trainer.train(resume_from_checkpoint=resume)
    return {
        "trained": [[step, [ids[texts] for texts in batch]] for step, batch in trainer.trained],
        "orders": orders.seen,
        "plans": trainer.plans,
        "weights": weights_hash(trainer.model),
    }


def main() -> None:
    """Trains once from the start and then from several checkpoints, and writes `rank_R.json`."""
    model_folder, output, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    result = {"whole": run(model_folder, output / "whole", workers), "resumed": {}}
    for step in (3, 4, 6, 9):
        checkpoint = str(output / "whole" / f"checkpoint-{step}")
        result["resumed"][step] = run(model_folder, output / "more", workers, checkpoint, save_strategy="no")
    (output / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
