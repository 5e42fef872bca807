"""Two datasets in sub-batches, by weights; in one process or in each of several. Writes what it trained."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import make_pairs, make_static_model
from datasets import DatasetDict
from recorded import RecordingTrainer, weights_hash
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainingArguments
from gcbs_st.losses import OwnNegativesRankingLoss

BATCH, RATE = 8, 0.1
PROMPTS = {
    "first": {"anchor": "query: ", "positive": "query: "}, "second": {"anchor": "passage: "}, "own": {},
}  # fmt: skip
WEIGHTS = {"first": 1, "second": 2, "own": 1}


def three_sets() -> DatasetDict:
    """Pairs of two kinds, and triplets whose rows are no negatives of each other."""
    own = make_pairs(46, seed=7).add_column("negative", make_pairs(46, seed=8)["anchor"])
    return DatasetDict(first=make_pairs(93), second=make_pairs(30, seed=5), own=own)


def losses_of(model: Any) -> dict[str, Any]:
    """One for each dataset, of different scales."""
    return {
        "first": MultipleNegativesRankingLoss(model),
        "second": MultipleNegativesRankingLoss(model, scale=5.0),
        "own": OwnNegativesRankingLoss(model),
    }


class KeepingTrainer(RecordingTrainer):
    """Keeps what was planned: name of the dataset, texts of the rows in order, and the step before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plans: list[tuple[int, str, list[int]]] = []
        plan = self.replanner.plan_rows

        def plan_rows(name: str, *given: Any) -> Any:
            order = plan(name, *given)
            self.plans.append((self.state.global_step, name, order.tolist()))
            return order

        self.replanner.plan_rows = plan_rows


def run(output: Path, resume: str | None = None, rows: Any = None, loss: Any = None, **given: Any) -> KeepingTrainer:
    """One training by plain gradient descent, so that a loop of a few lines does the same."""
    model = make_static_model()
    defaults = {
        "per_device_train_batch_size": BATCH, "num_train_epochs": 2, "planner": "bisect", "optim": "sgd",
        "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "seed": 5,
    }  # fmt: skip
    args = GCBSTrainingArguments(str(output), **{**defaults, **given})
    trainer = KeepingTrainer(model, args, rows or three_sets(), loss=(loss or losses_of)(model))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def told(trainer: KeepingTrainer) -> dict[str, Any]:
    """What is compared."""
    shares = [
        {name: entry[f"gcbs/{name}/step_share"] for name in WEIGHTS}
        for entry in trainer.state.log_history
        if "gcbs/first/step_share" in entry
    ]
    return {
        "trained": trainer.trained, "plans": trainer.plans, "weights": weights_hash(trainer.model), "shares": shares,
        "vectors": next(trainer.model.parameters()).tolist(),
    }  # fmt: skip


def gathering(model: Any) -> Any:
    """The negatives of all ranks."""
    return MultipleNegativesRankingLoss(model, gather_across_devices=True)


def work(output: Path) -> None:
    """Several trainings, the first one also resumed; writes `rank_R.json`."""
    torch.set_num_threads(1)
    mixed: dict[str, Any] = {"dataset_weights": WEIGHTS, "prompts": PROMPTS, "sub_batches": 2}
    saved = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 30}
    result = {
        "sub-batches": told(run(output / "mixed", **mixed, **saved)),
        "accumulated": told(run(output / "accumulated", **mixed, gradient_accumulation_steps=2)),
        "harvest": told(run(output / "harvest", **mixed, embedding_source="harvest", first_plan="encode", **saved)),
        "gathered": told(
            run(output / "gathered", dataset_weights=WEIGHTS, sub_batches=2, rows=three_sets(), loss=gathering)
        ),
        "resumed": {},
    }
    for name, folder, more in (("sub-batches", "mixed", {}), ("harvest", "harvest", {"embedding_source": "harvest"})):
        for step in (1, 5, 10, 13):
            given = {**mixed, **more, **({"first_plan": "encode"} if more else {})}
            checkpoint = str(output / folder / f"checkpoint-{step}")
            result["resumed"][f"{name} {step}"] = told(run(output / "more", checkpoint, **given))
    rank = os.environ.get("RANK", "0")
    (output / f"rank_{rank}.json").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
