"""What each process of ``test_emc2.py`` runs: trains with a loss that keeps states of rows, and resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import make_pairs
from recorded import weights_hash
from sentence_transformers import SentenceTransformer

from gcbs_st import EMC2Loss, GCBSTrainer, GCBSTrainingArguments
from gcbs_st.losses import SogCLRLoss
from gcbs_st.training.loss_states import RowStates

ROWS, BATCH, EPOCHS = 109, 8, 2


def plain(loss: Any) -> dict[str, Any]:
    """The states, as JSON has them."""
    return {name: array.tolist() for name, array in loss.row_state().items()}


def run(model_folder: str, output: Path, kind: str, resume: str | None = None, **given: Any) -> dict[str, Any]:
    """One training, from the start or a checkpoint; what this process saw of it."""
    model = SentenceTransformer(model_folder, device="cpu")
    loss = {
        "emc2": lambda: EMC2Loss(model),
        "both directions": lambda: EMC2Loss(model, directions=("query_to_doc", "doc_to_query")),
        "sogclr": lambda: SogCLRLoss(model),
    }[kind]()
    merges, rows, asked = [], [], []
    merge, told, features_of = RowStates.merge, loss.set_rows, loss.features_of

    def merging(states: RowStates, device: torch.device) -> None:
        before = plain(loss)
        merge(states, device)
        merges.append((before, plain(loss)))

    def telling(ids: Any) -> None:
        if ids is not None:
            rows.append(ids.tolist())
        told(ids)

    def asking(direction: str, ids: Any) -> Any:
        asked.append(ids.tolist())
        return features_of(direction, ids)

    RowStates.merge, loss.set_rows, loss.features_of = merging, telling, asking
    args = GCBSTrainingArguments(
        str(output), per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS, learning_rate=1e-3, use_cpu=True,
        replan_steps=2, report_to="none", disable_tqdm=True, planner="bisect",
        **{"save_strategy": "steps", "save_steps": 4, **given},
    )  # fmt: skip
    trainer = GCBSTrainer(model, args, make_pairs(ROWS), loss=loss)
    trainer.train(resume_from_checkpoint=resume)
    RowStates.merge = merge
    return {
        "weights": weights_hash(trainer.model),
        "state": plain(loss),
        "merges": merges,
        "rows": rows,
        "asked": asked,
    }


def work(model_folder: str, output: Path, kind: str) -> None:
    """Trains once from the start and then from several checkpoints, and writes `rank_R.json`; see `run` for kinds."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {"whole": run(model_folder, output / "whole", kind), "resumed": {}}
    for step in (4, 8):
        # It saves as often: states are brought together when a run saves, and that is part of what it computes.
        checkpoint = str(output / "whole" / f"checkpoint-{step}")
        result["resumed"][step] = run(model_folder, output / f"more-{step}", kind, checkpoint)
    (output / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
