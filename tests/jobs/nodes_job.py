"""What each process of ``test_nodes.py`` runs: one of four ranks, on one node or on one of two that share nothing."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import make_pairs, make_static_model
from recorded import RecordingTrainer, weights_hash
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainingArguments

RANKS, RANKS_OF_NODE, BATCH, ROWS = 4, 2, 4, 165


def train(output: Path, source: str, resume: str | None = None, **given: Any) -> dict[str, Any]:
    """Two epochs of ten steps; what this rank trained on, and a hash of the weights."""
    model = make_static_model()
    args = GCBSTrainingArguments(
        str(output), per_device_train_batch_size=BATCH, num_train_epochs=2, learning_rate=1e-2, use_cpu=True,
        replan_steps=4, report_to="none", disable_tqdm=True, planner="partition", embedding_source=source,
        planner_options={"neighbors": 5}, save_on_each_node=True, **given,
    )  # fmt: skip
    rows = make_pairs(ROWS)
    ids = {tuple(row.values()): i for i, row in enumerate(rows)}
    trainer = RecordingTrainer(model, args, rows, loss=MultipleNegativesRankingLoss(model))
    trainer.train(resume_from_checkpoint=resume)
    trained = [[step, [ids[texts] for texts in batch]] for step, batch in trainer.trained]
    return {"trained": trained, "weights": weights_hash(trainer.model)}


def work(output: Path, nodes: int) -> None:
    """Trains from the start and from two checkpoints, each node in a folder of its own, and writes `rank_R.json`."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    node = rank // RANKS_OF_NODE if nodes > 1 else 0
    if nodes > 1:
        os.environ["LOCAL_WORLD_SIZE"] = str(RANKS_OF_NODE)
        os.environ["LOCAL_RANK"] = str(rank % RANKS_OF_NODE)
        socket.gethostname = lambda: f"node{node}"
    own = output / f"node{node}"
    result: dict[str, Any] = {}
    for source in ("encode", "harvest"):
        result[source] = {"whole": train(own / source, source, save_steps=1), "resumed": {}}
        for step in (6, 10):
            checkpoint = str(own / source / f"checkpoint-{step}")
            more = train(own / "more", source, checkpoint, save_strategy="no")
            result[source]["resumed"][step] = more
    (output / f"rank_{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
