"""What each process of ``test_distributed.py`` runs: trains, resumes, and writes down what it trained on."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from conftest import make_pairs, make_static_model, planted_pairs
from datasets import DatasetDict
from recorded import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.embeddings.encode import encode_rows
from gcbs_st.planners import make_planner
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.base import BasePlanner, configured
from gcbs_st.ranks import fair_threads
from gcbs_st.training.parallel_planning import plan_with_all

ROWS, BATCH, EPOCHS = 109, 8, 2  # 13 batches an epoch, of which the ranks draw 12 in 6 steps


class PlannedTrainer(RecordingTrainer):
    """Keeps the rows in the order in which they were planned, before batches were shuffled; on rank 0 alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plans: list[dict[str, Any]] = []
        plan_rows = self.replanner.plan_rows

        def keep(*args: Any) -> Any:
            rows = plan_rows(*args)
            self.plans.append({"step": self.state.global_step, "name": args[0], "rows": rows.tolist()})
            return rows

        self.replanner.plan_rows = keep


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
        replan_steps=2, save_steps=1, dataloader_num_workers=workers, report_to="none", disable_tqdm=True,
        planner="bisect", **given,
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


class Stored(TrainerCallback):
    """What is stored at the end of training, on the rank that plans, beside what the model makes of the same rows."""

    def __init__(self, trainer: GCBSTrainer) -> None:
        self.trainer, self.seen = trainer, {}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        source = self.trainer.source
        source.sync()
        if not self.trainer.is_world_process_zero():
            return
        part, store = source.parts[""], source.harvested.stores[""]
        rows = np.flatnonzero(store.steps() >= 0)
        encoded = encode_rows(self.trainer.model, part.dataset, rows, part.columns, batch_size=16)
        errors = [np.abs(one - other).max() for one, other in zip(store.read(rows), encoded, strict=True)]
        self.seen = {"rows": rows.tolist(), "error": float(max(errors)), "in_files": store.folder is not None}


def harvest(model_folder: str, output: Path, **given: Any) -> dict[str, Any]:
    """One training that changes nothing, so that it is known what must have been harvested."""
    model = SentenceTransformer(model_folder, device="cpu")
    args = GCBSTrainingArguments(
        str(output), per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS, learning_rate=0.0, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, embedding_source="harvest", planner="bisect", **given,
    )  # fmt: skip
    rows = make_pairs(ROWS)
    ids = {tuple(row.values()): i for i, row in enumerate(rows)}
    trainer = RecordingTrainer(model, args, rows, loss=MultipleNegativesRankingLoss(model))
    stored = Stored(trainer)
    trainer.add_callback(stored)
    trainer.train()
    trained = [[step, [ids[texts] for texts in batch]] for step, batch in trainer.trained]
    ages = [entry.get("gcbs/embedding_age_max") for entry in trainer.state.log_history if "gcbs/gap" in entry]
    return {"trained": trained, "stored": stored.seen, "ages": ages}


class ReversingPlanner:
    """Plans the rows back to front, and remembers how many it was given."""

    splits = True
    given: list[int] = []

    def plan(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        self.given.append(len(anchors))
        return np.arange(len(anchors))[::-1]


def plan_together(processes: int) -> dict[str, Any]:
    """Plans of rows in as many planted clusters as there are processes, made by all of them."""
    result: dict[str, Any] = {"given": ReversingPlanner.given, "threads": fair_threads(processes)}
    planners = {
        "reversing": ReversingPlanner(),
        **{name: make_planner(name) for name in ("bisect", "partition", "best")},
    }
    for name, planner in planners.items():
        pairs = planted_pairs(processes) if dist.get_rank() == 0 else None
        order = plan_with_all(
            planner, pairs, BATCH, np.random.default_rng(3), ranks=processes, device=torch.device("cpu")
        )
        result[name] = order.tolist()
    few = tuple(side[: 2 * BATCH] for side in planted_pairs(processes)) if dist.get_rank() == 0 else None
    result["told"] = plan_told(processes)
    result["few"] = plan_with_all(
        planners["best"], few, BATCH, np.random.default_rng(3), ranks=processes, device=torch.device("cpu")
    ).tolist()
    return result


@dataclass(frozen=True, kw_only=True)
class ToldPlanner(BasePlanner):
    """Keeps its rows as they come, and notes which it is told are no negatives of each other."""

    splits = True
    contradictions: Contradictions | None = field(default=None, compare=False)
    told = []  # noqa: RUF012 - one for all copies that are made of it

    def order_rows(self, anchors: Any, positives: Any, batch_size: int, rng: Any) -> Any:
        rows, ids = np.arange(len(anchors)), anchors[:, 0].astype(int)
        among = self.contradictions.among(rows, rows, np.zeros((len(rows), len(rows))), np.zeros(len(rows)))
        self.told.extend((int(ids[i]), int(ids[j])) for i, j in np.argwhere(among))
        return rows


def plan_told(processes: int) -> dict[str, Any]:
    """What each process's planner is told of its own cell: rows of one value, and what a judge takes for false."""
    result = {}
    for way in ("values", "judge"):
        ToldPlanner.told.clear()
        pairs, planner = None, ToldPlanner()
        if dist.get_rank() == 0:
            n = 16 * processes
            # The first number of a row is its id, the others say to which cell it belongs.
            side = np.zeros((n, 4), np.float32)
            side[:, 0], side[:, 1] = np.arange(n), 1e4 * (np.arange(n) % processes)
            pairs = (side, side)
            values = Contradictions(
                None, None, np.arange(n + 1), (np.arange(n) // 4).astype(np.int32), np.ones(n, bool)
            )
            angles = np.repeat(np.arange(n // 4), 4) * 2 * np.pi / (n // 4)
            circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
            told = values if way == "values" else Contradictions(0.999, [circle, circle])
            planner = configured(planner, contradictions=told)
        order = plan_with_all(planner, pairs, 4, np.random.default_rng(0), ranks=processes, device=torch.device("cpu"))
        result[way] = {"told": sorted(ToldPlanner.told), "order": order.tolist()}
    return result


def several(model_folder: str, output: Path, sampler: str) -> dict[str, Any]:
    """One training on two datasets, with a loss that gathers the negatives of all processes."""
    model = SentenceTransformer(model_folder, device="cpu")
    args = GCBSTrainingArguments(
        str(output), per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS, learning_rate=1e-3, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, planner="bisect", multi_dataset_batch_sampler=sampler,
    )  # fmt: skip
    parts = DatasetDict({"first": make_pairs(ROWS), "second": make_pairs(ROWS // 2, seed=5)})
    ids = {name: {tuple(row.values()): i for i, row in enumerate(rows)} for name, rows in parts.items()}
    loss = MultipleNegativesRankingLoss(model, gather_across_devices=True)
    trainer = PlannedTrainer(model, args, parts, loss=loss)
    trainer.train()
    trained = [
        [step, next([name, [ids[name][texts] for texts in batch]] for name in parts if batch[0] in ids[name])]
        for step, batch in trainer.trained
    ]
    logged = [key for entry in trainer.state.log_history for key in entry if key.endswith("planned_rows")]
    return {"trained": trained, "plans": trainer.plans, "logged": logged}


class FailingTrainer(GCBSTrainer):
    """Fails on one rank: in the planning of all rows, or in what the model is asked for before that."""

    def plan_batches(
        self, anchors: np.ndarray, positives: np.ndarray, batch_size: int, rng: np.random.Generator
    ) -> np.ndarray:
        if self.args.output_dir.endswith("planning"):
            raise ValueError("no plan today")
        return super().plan_batches(anchors, positives, batch_size, rng)


class FailingPlanner(ReversingPlanner):
    """Fails on the last rank, in its own cell of rows."""

    def plan(self, *args: Any) -> np.ndarray:
        if dist.get_rank() == dist.get_world_size() - 1:
            raise ValueError("no plan of this cell")
        return super().plan(*args)


def fail(output: Path, where: str) -> str:
    """What a process raises where one of them fails; that it comes back at all is half of the test."""
    model = make_static_model()
    args = GCBSTrainingArguments(
        str(output / where), per_device_train_batch_size=BATCH, max_steps=2, use_cpu=True, save_strategy="no",
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    if where == "a cell":
        args.planner = FailingPlanner()
    trainer_class = GCBSTrainer if where == "a cell" else FailingTrainer
    if where == "embedding" and dist.get_rank() == 1:
        model.encode = lambda *args, **kwargs: 1 / 0
    try:
        trainer_class(model, args, make_pairs(ROWS), loss=MultipleNegativesRankingLoss(model)).train()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def break_on_the_last_rank() -> None:
    """Fails on one rank while the others wait, longer than any test."""
    if os.environ["RANK"] == "1":
        raise ValueError("broken on purpose")
    time.sleep(600)


def work(model_folder: str, output: Path, workers: int, source: str) -> None:
    """Trains once from the start and then from several checkpoints, and writes `rank_R.json`."""
    torch.set_num_threads(1)
    if source == "together":
        PartialState(cpu=True)
        result: dict[str, Any] = plan_together(int(os.environ["WORLD_SIZE"]))
    elif source == "several":
        result = {
            sampler: several(model_folder, output / "run", sampler) for sampler in ("round_robin", "proportional")
        }
    elif source == "failing":
        PartialState(cpu=True)
        result = {where: fail(output, where) for where in ("planning", "a cell", "embedding", "nowhere")}
    elif source == "both ways":  # through files that the ranks share, and sent to the rank that plans
        result = {"shared": harvest(model_folder, output / "run", first_plan="encode")}
        result["aged"] = harvest(model_folder, output / "run", embedding_max_age=2)
        os.environ["LOCAL_WORLD_SIZE"] = "1"  # as if each rank were a node
        result["sent"] = harvest(model_folder, output / "run", first_plan="encode")
        result["sent, on disk"] = harvest(model_folder, output / "run", first_plan="encode", embedding_storage="disk")
        result["sent aged"] = harvest(model_folder, output / "run", embedding_max_age=2)
    else:
        given = {"embedding_source": source, "first_plan": "encode"}
        result = {"whole": run(model_folder, output / "whole", workers, **given), "resumed": {}}
        for step in (3, 4, 6, 9):
            checkpoint = str(output / "whole" / f"checkpoint-{step}")
            result["resumed"][step] = run(
                model_folder, output / "more", workers, checkpoint, save_strategy="no", **given
            )
    (output / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
