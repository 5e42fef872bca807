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
from conftest import make_pairs
from recorded import RecordingTrainer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize

from gcbs_st import GCBSTrainingArguments
from gcbs_st.embeddings.encode import encode_rows

ROWS, BATCH, EPOCHS = 109, 8, 3  # 13 batches an epoch, of which the ranks draw 12 in 6 steps
RESUMED = (3, 6, 9)  # in the first epoch, at its end, and in a planned one


def shard_on_the_cpu() -> None:
    """Lets accelerate use FSDP on a CPU: it asks for it on accelerators only, though torch shards on either.

    To be called once. Nothing else of the host needs it.
    """
    begin = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **given: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **given)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def fsdp(state: str, **more: Any) -> dict[str, Any]:
    """The arguments of a run under FSDP2."""
    wrapped = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": ["BertLayer"]}
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": state, **wrapped, **more}}


class HiddenLoss(MultipleNegativesRankingLoss):
    """Hands the model features of its own, so that nobody can tell whose embeddings come out."""

    def forward(self, sentence_features: Any, labels: Any = None) -> Any:
        known = ("input_ids", "attention_mask", "token_type_ids")
        return super().forward([{key: one[key] for key in known} for one in sentence_features], labels)


def build(model_folder: str, output: Path, *, loss: Any = MultipleNegativesRankingLoss, **given: Any) -> Any:
    """A trainer of a model whose last module has no weights, as many have one."""
    model = SentenceTransformer(modules=[*SentenceTransformer(model_folder, device="cpu"), Normalize()], device="cpu")
    harvest = {"embedding_source": "harvest", "first_plan": "random"}
    args = GCBSTrainingArguments(
        str(output), per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS, learning_rate=1e-3, use_cpu=True,
        planner="bisect", report_to="none", disable_tqdm=True, logging_steps=1, **{**harvest, **given},
    )  # fmt: skip
    return RecordingTrainer(model, args, make_pairs(ROWS), loss=loss(model))


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    """The whole weights, on the main process."""
    state = trainer.accelerator.get_state_dict(trainer.model)
    return {name: value.detach().clone() for name, value in state.items()}


def run(model_folder: str, output: Path, resume: str | None = None, **given: Any) -> dict[str, Any]:
    """One training, from the start or a checkpoint; what this process saw of it."""
    trainer = build(model_folder, output, **given)
    given_model, ids = trainer.model, {tuple(row.values()): i for i, row in enumerate(trainer.train_dataset)}
    trainer.train(resume_from_checkpoint=resume)
    history = trainer.state.log_history
    return {
        "trained": [[step, [ids[texts] for texts in batch]] for step, batch in trainer.trained],
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "norms": [entry["grad_norm"] for entry in history if "grad_norm" in entry],
        "plans": [entry["step"] for entry in history if "gcbs/gap" in entry],
        "same model": trainer.model is given_model,
        "kind": type(trainer.model).__name__,
        "weights": weights_of(trainer),
        "trainer": trainer,
    }


def differ(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of the weights of two runs; 0 on all but the main process, which alone has them."""
    if dist.get_rank():
        return 0.0
    assert set(one["weights"]) == set(other["weights"])
    pairs = [(value, other["weights"][name]) for name, value in one["weights"].items()]
    return max(float((a - b).abs().max()) for a, b in pairs)


def told(seen: dict[str, Any]) -> dict[str, Any]:
    """What can be written down."""
    return {name: value for name, value in seen.items() if name not in ("weights", "trainer")}


def harvested(trainer: Any, folder: Path) -> dict[str, Any]:
    """What a checkpoint holds of rows, beside what the model that was saved there makes of them."""
    if dist.get_rank() or not (folder / "modules.json").is_file():
        return {}
    saved = SentenceTransformer(str(folder), device="cpu")
    state, own = trainer.accelerator.state, saved.state_dict()
    return {"names": sorted(own), "fsdp": state.fsdp_plugin.fsdp_version, "card": (folder / "README.md").is_file()}


def refused(model_folder: str, output: Path, **given: Any) -> str:
    """The message of a trainer that is not made."""
    try:
        build(model_folder, output, **given)
    except ValueError as error:
        return str(error)
    return ""


def train_and_resume(model_folder: str, output: Path, state: str, alone: dict[str, Any]) -> dict[str, Any]:
    """One run under FSDP2, beside the one under DDP, and from its checkpoints."""
    whole = run(model_folder, output / state, save_steps=3, **fsdp(state))
    result = {"whole": told(whole), "off DDP": differ(alone, whole), "resumed": {}}
    for step in RESUMED:
        checkpoint = str(output / state / f"checkpoint-{step}")
        again = run(model_folder, output / f"{state} more", checkpoint, save_strategy="no", **fsdp(state))
        result["resumed"][step] = {**told(again), "off": differ(whole, again)}
    final = output / f"{state} final"
    whole["trainer"].save_model(str(final))
    dist.barrier()
    if dist.get_rank() == 0 and (final / "modules.json").is_file():
        saved = SentenceTransformer(str(final), device="cpu").state_dict()
        gathered = {name.removeprefix("_orig_mod."): value for name, value in whole["weights"].items()}
        assert set(saved) == set(gathered)
        result["saved off"] = max(float((saved[name] - value).abs().max()) for name, value in gathered.items())
        result["card"] = (final / "README.md").read_text()
    whole["trainer"].train()  # once more, with the model that is sharded now
    return result


def work(model_folder: str, output: Path) -> None:
    """Trains in every way, and writes `rank_R.json`."""
    torch.set_num_threads(1)
    shard_on_the_cpu()
    # First, since the host's arguments leave FSDP on in the environment.
    alone = run(model_folder, output / "ddp", save_strategy="no")
    result: dict[str, Any] = {"DDP": told(alone)}
    for state in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        result[state] = train_and_resume(model_folder, output, state, alone)
    (output / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
