"""The training that ``kill_and_resume.py`` kills: each process of it tells in a file what it does, as it does it.

The model is a tiny BERT with dropout, the batches are planned anew every few steps in mid-epoch, and checkpoints
are frequent.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import make_pairs
from datasets import Dataset, DatasetDict
from recorded import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainingArguments
from gcbs_st.batches.checkpoint import last_whole_checkpoint
from gcbs_st.losses import EMC2Loss, SogCLRLoss

LOSSES = {loss.__name__: loss for loss in (MultipleNegativesRankingLoss, EMC2Loss, SogCLRLoss)}
# The other ranks write their part of a checkpoint that much later than the main one, as on a slower disk.
LAG_SECONDS = 0.03


@dataclass(frozen=True)
class Settings:
    """What the runs that are compared have in common."""

    workers: int = 0
    persistent: bool = False
    accumulation: int = 1
    no_duplicates: bool = False
    planner: str = "gcbs"
    source: str = "encode"
    view: str = "model"
    hardness: float | None = None
    loss: str = "MultipleNegativesRankingLoss"
    ranks: int = 1
    datasets: str = ""
    rows_a_rank: int = 99
    batch_size: int = 8
    epochs: int = 3
    replan_steps: int = 3
    save_steps: int = 4
    dataset_weights: Any = None
    sub_batches: int = 1
    window: int = 0  # rows of a window of a stream; 0 for rows that can be counted


@dataclass(frozen=True)
class Task:
    """One run: what, from which model, into which folder; what it tells goes to files beginning with `report`."""

    settings: Settings
    model_folder: str
    output: str
    report: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        fields = json.loads(text)
        return cls(**{**fields, "settings": Settings(**fields["settings"])})

    def report_of(self, rank: int) -> Path:
        return Path(f"{self.report}.{rank}.jsonl")


class ReportingTrainer(RecordingTrainer):
    """Writes what it does to a file, at once, so that it is known also of a killed run."""

    report: int = -1

    def tell(self, **event: Any) -> None:
        os.write(self.report, (json.dumps({**event, "time": time.monotonic()}) + "\n").encode())

    def training_step(self, *args: Any) -> torch.Tensor:
        loss = super().training_step(*args)
        step, texts = self.trained[-1]
        self.tell(event="trained", step=step, texts=texts)
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.tell(event="saving", step=self.state.global_step)
        super()._save_checkpoint(*args, **kwargs)
        self.tell(event="saved", step=self.state.global_step)

    def _save_rng_state(self, *args: Any) -> None:
        time.sleep(LAG_SECONDS * (self.args.process_index > 0))
        super()._save_rng_state(*args)


def make_rows(settings: Settings) -> Dataset | DatasetDict:
    """As many rows as give every number of ranks the same number of steps, or two datasets of different sizes."""
    rows = make_pairs(settings.rows_a_rank * settings.ranks)
    if settings.no_duplicates:  # every positive in two or three rows, which a planner puts side by side
        positives = (list(rows["positive"])[: 40 * settings.ranks] * 3)[: len(rows)]
        rows = Dataset.from_dict({"anchor": rows["anchor"], "positive": positives})
    if not settings.datasets:
        return rows
    first = 2 * len(rows) // 5
    return DatasetDict(first=rows.select(range(first)), second=rows.select(range(first, len(rows))))


def train(task: Task) -> None:
    """One process of a run, from the start or from the newest whole checkpoint of its folder, to its end."""
    settings = task.settings
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(Path(task.output).parent / "cache")  # not the user's
    model = SentenceTransformer(task.model_folder, device="cpu")
    args = GCBSTrainingArguments(
        task.output,
        planner=settings.planner,
        embedding_source=settings.source,
        planner_view=settings.view,
        planner_hardness=settings.hardness,
        replan_steps=0 if settings.window else settings.replan_steps,
        planning_window=settings.window or None,
        max_steps=settings.epochs * settings.rows_a_rank // settings.batch_size if settings.window else -1,
        batch_sampler="no_duplicates" if settings.no_duplicates else "batch_sampler",
        multi_dataset_batch_sampler=settings.datasets or "proportional",
        dataset_weights=settings.dataset_weights,
        sub_batches=settings.sub_batches,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=1e-3,
        save_steps=settings.save_steps,
        save_total_limit=2,
        dataloader_num_workers=settings.workers,
        dataloader_persistent_workers=settings.persistent and settings.workers > 0,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
    )
    rows = make_rows(settings)
    rows = rows.to_iterable_dataset() if settings.window else rows
    trainer = ReportingTrainer(model, args, rows, loss=LOSSES[settings.loss](model))
    trainer.report = os.open(task.report_of(args.process_index), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    checkpoint = last_whole_checkpoint(task.output)
    resumed_from = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
    trainer.tell(event="started", resumed_from=resumed_from, pid=os.getpid())
    trainer.train(resume_from_checkpoint=checkpoint is not None)
    trainer.tell(event="ended", step=trainer.state.global_step, weights=weights_hash(trainer.model))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
