"""What each process of ``test_sharded.py`` runs: trainings whose weights are spread over the processes, and one under DDP."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from conftest import make_pairs, make_static_model
from recorded import RecordingTrainer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize
from torch.distributed.tensor import DTensor

from gcbs_st import GCBSTrainingArguments

ROWS, BATCH, EPOCHS = 109, 8, 3  # 13 batches an epoch, of which the ranks draw 12 in 6 steps
RESUMED = (3, 6, 9)  # in the first epoch, at its end, and in a planned one


def shard_on_the_cpu() -> None:
    """Lets accelerate use FSDP on a CPU: it does on accelerators only, though torch shards on either.

    To be called once. It is all that is not as on a GPU.
    """
    begin = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **given: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **given)
        if fsdp_plugin is not None:
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def fsdp(state: str = "FULL_STATE_DICT", **more: Any) -> dict[str, Any]:
    """The arguments of a run under FSDP2."""
    wrapped = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": ["BertLayer"]}
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": state, **wrapped, **more}}


class HiddenLoss(MultipleNegativesRankingLoss):
    """Hands the model features of its own, so that nobody can tell whose embeddings come out."""

    def forward(self, sentence_features: Any, labels: Any = None) -> Any:
        own = [{key: value for key, value in one.items() if not key.startswith("gcbs")} for one in sentence_features]
        return super().forward(own, labels)


def build(model_folder: str, output: Path, *, loss: Any = MultipleNegativesRankingLoss, **given: Any) -> Any:
    """A trainer of a model whose last module has no weights, as those of many have none."""
    model = SentenceTransformer(modules=[*SentenceTransformer(model_folder, device="cpu"), Normalize()], device="cpu")
    usual = {
        "embedding_source": "harvest",
        "first_plan": "random",
        "num_train_epochs": EPOCHS,
        "save_strategy": "no",
        "learning_rate": 1e-3,
    }
    args = GCBSTrainingArguments(
        str(output), per_device_train_batch_size=BATCH, use_cpu=True, planner="bisect", report_to="none",
        disable_tqdm=True, logging_steps=1, **{**usual, **given},
    )  # fmt: skip
    return RecordingTrainer(model, args, make_pairs(ROWS), make_pairs(16, seed=3), loss=loss(model))


def run(model_folder: str, output: Path, resume: str | None = None, **given: Any) -> dict[str, Any]:
    """One training, from the start or a checkpoint; what this process saw of it."""
    trainer = build(model_folder, output, **given)
    model, ids = trainer.model, {tuple(row.values()): i for i, row in enumerate(trainer.train_dataset)}
    trainer.train(resume_from_checkpoint=resume)
    history = trainer.state.log_history
    shards = [one.to_local().numel() / one.numel() for one in model.parameters() if isinstance(one, DTensor)]
    return {
        "trained": [[step, [ids[texts] for texts in batch]] for step, batch in trainer.trained],
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "plans": [entry["step"] for entry in history if "gcbs/gap" in entry],
        "ages": [entry["gcbs/embedding_age_max"] for entry in history if "gcbs/embedding_age_max" in entry],
        "same model": trainer.model is model,
        "share": sum(shards) / max(1, len(shards)),
        "weights": trainer.accelerator.get_state_dict(model),
        "trainer": trainer,
    }


def told(seen: dict[str, Any]) -> dict[str, Any]:
    """What can be written down."""
    return {name: value for name, value in seen.items() if name not in ("weights", "trainer")}


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two models' weights."""
    assert set(one) == set(other)
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model that was saved."""
    return SentenceTransformer(str(folder), device="cpu").state_dict()


def train_and_resume(model_folder: str, output: Path, state: str) -> dict[str, Any]:
    """One run under FSDP2 beside one under DDP, resumed from its checkpoints, saved, and trained further."""
    # First, since the host's arguments leave FSDP on in the environment.
    alone = run(model_folder, output / "ddp")
    given, main = {"save_steps": 3, **fsdp(state)}, dist.get_rank() == 0
    whole = run(model_folder, output / "fsdp", save_strategy="steps", **given)
    result: dict[str, Any] = {"DDP": told(alone), "FSDP": told(whole), "resumed": {}}
    for step in RESUMED:
        again = run(model_folder, output / "more", str(output / "fsdp" / f"checkpoint-{step}"), **given)
        off = differ(whole["weights"], again["weights"]) if main else None
        result["resumed"][step] = {**told(again), "off": off}
    whole["trainer"].save_model(str(output / "final"))
    if main:
        result["off DDP"] = differ(alone["weights"], whole["weights"])
        if state == "FULL_STATE_DICT":
            result["saved off"] = [
                differ(whole["weights"], saved(output / place)) for place in ("final", "fsdp/checkpoint-18")
            ]
            result["card"] = "planner:bisect" in (output / "final" / "README.md").read_text()
    dist.barrier()
    before = len(whole["trainer"].trained)
    whole["trainer"].train()  # with the model that is sharded by now
    result["trained again"] = len(whole["trainer"].trained) - before
    return result


def train_in_other_ways(model_folder: str, output: Path) -> dict[str, Any]:
    """Runs under FSDP2 with what may go wrong there."""
    short = {"num_train_epochs": 2, **fsdp()}
    result: dict[str, Any] = {"hidden": told(run(model_folder, output / "hidden", loss=HiddenLoss, **short))}
    # Frozen, since the host would hand what a loss holds to the optimizer, where accelerate finds no shard of it.
    guide = SentenceTransformer(model_folder, device="cpu").requires_grad_(False)
    best = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True, "learning_rate": 1e-2}
    guided = run(
        model_folder, output / "guided", loss=lambda model: GISTEmbedLoss(model, guide), bf16=True, **best, **short
    )
    result["guided"] = told(guided)
    if dist.get_rank() == 0:
        folder = Path(guided["trainer"].state.best_model_checkpoint)
        result["guided"]["off best"] = differ(guided["weights"], saved(folder))
    reference = {"planner_view": make_static_model(), "embedding_source": "encode"}
    result["reference"] = told(run(model_folder, output / "reference", **short, **reference))
    try:
        build(model_folder, output / "encode", embedding_source="encode", **short)
    except ValueError as error:
        result["refused"] = str(error)
    return result


def work(model_folder: str, output: Path, what: str) -> None:
    """Trains, and writes `rank_R.json`."""
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(output / "cache")
    shard_on_the_cpu()
    others = what == "in other ways"
    result = train_in_other_ways(model_folder, output) if others else train_and_resume(model_folder, output, what)
    (output / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
