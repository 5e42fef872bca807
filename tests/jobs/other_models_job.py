"""What each process of ``test_other_models_distributed.py`` runs: sparse and late-interaction models, trained and resumed.

The folder that it is given holds a BERT with dropout and one without of each kind: of several processes only one can save them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from conftest import make_pairs
from other_models import B, Watching, batches_of_ids, load_colbert, load_splade
from recorded import weights_hash

from gcbs_st import GCBSSparseEncoderTrainer, GCBSSparseEncoderTrainingArguments
from gcbs_st.embeddings.encode import encode_rows

ROWS, EPOCHS = 109, 2  # 13 batches an epoch, of which two ranks draw 12 in 6 steps


class SparseTrainer(Watching, GCBSSparseEncoderTrainer):
    """The trainer, watched."""


def kinds() -> dict[str, Any]:
    """Trainer, arguments and loader of the model, by kind; late interaction where the host has it."""
    found: dict[str, Any] = {"sparse": (SparseTrainer, GCBSSparseEncoderTrainingArguments, load_splade)}
    try:
        from gcbs_st import GCBSMultiVectorEncoderTrainer, GCBSMultiVectorEncoderTrainingArguments
    except ImportError:
        return found

    class LateTrainer(Watching, GCBSMultiVectorEncoderTrainer):
        """The trainer, watched."""

    return {**found, "late": (LateTrainer, GCBSMultiVectorEncoderTrainingArguments, load_colbert)}


def run(kind: Any, folder: Path, output: Path, resume: str | None = None, **given: Any) -> dict[str, Any]:
    """One training with the host's default loss, from the start or a checkpoint; what this process saw of it."""
    trainer_class, arguments, load = kind
    model = load(str(folder))
    args = arguments(
        str(output), per_device_train_batch_size=B, num_train_epochs=EPOCHS, use_cpu=True, planner="bisect",
        report_to="none", disable_tqdm=True, **{"learning_rate": 1e-3, "save_steps": 3, "replan_steps": 4, **given},
    )  # fmt: skip
    rows = make_pairs(ROWS)
    trainer = trainer_class(model, args, rows)
    trainer.train(resume)
    error = None
    if given.get("learning_rate") == 0 and dist.get_rank() == 0:
        columns, view = trainer.row_memory._parts()[""].columns, trainer.planning_view()
        encoded = encode_rows(model, rows, trainer.seen, columns, batch_size=16, view=view)
        error = float(max(np.abs(one - other).max() for one, other in zip(trainer.harvested, encoded, strict=True)))
    return {
        "trained": batches_of_ids(trainer, rows),
        "plans": [len(order) for _, _, order in getattr(trainer, "plans", [])],
        "weights": weights_hash(trainer.model),
        "error": error,
        "seen": len(getattr(trainer, "seen", [])),
    }


def work(output: Path) -> None:
    """Every kind with every source; what this rank saw goes into a file of its own."""
    torch.set_num_threads(1)
    PartialState()
    found: dict[str, Any] = {}
    for name, kind in kinds().items():
        for source in ("encode", "harvest"):
            given = {"embedding_source": source}
            at = output / f"{name}_{source}"
            whole = run(kind, output / name, at, **given)
            resumed = run(kind, output / name, output / "resumed" / at.name, str(at / "checkpoint-9"), **given)
            found[at.name] = {"whole": whole, "resumed": resumed}
        still = {"embedding_source": "harvest", "learning_rate": 0.0, "save_strategy": "no", "weight_decay": 0.0}
        found[f"{name}_still"] = run(kind, output / f"{name} still", output / "still", **still)
    (output / f"rank_{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
