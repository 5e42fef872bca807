"""Several processes: negatives of all of them, steps that do not fill, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from gcbs_st.planners.quality import plan_quality
from gcbs_st.training.loss_facts import loss_scale
from matrix.case import DDP, DDP_RESUME, RESUME, SINGLE, WORKS, Case, Run, everywhere, not_applicable, refused
from matrix.materials import bert, pairs, two_sets

FEWER_ROWS = 61  # 7 batches: of two processes 3 steps, and a batch that nobody draws


def qualities(trainer: Any) -> list[tuple[float, float]]:
    """Of each plan what it closes, measured here on batches of all processes' rows, and what was logged."""
    noted: list[tuple[float, float]] = []
    plan_rows = trainer.replanner.plan_rows

    def measuring(name: str, fetched: Any, *rest: Any) -> Any:
        rows = plan_rows(name, fetched, *rest)
        size = 8 * trainer.args.world_size
        whole = rows[: len(rows) // size * size]
        places = {row: place for place, row in enumerate(fetched.rows.tolist())}
        order = [places[row] for row in whole.tolist()]
        keep = sorted(order)
        again = {place: index for index, place in enumerate(keep)}
        anchors, positives = (array[keep] for array in fetched.arrays)
        own = plan_quality(
            anchors, positives, np.array([again[place] for place in order]), size, scale=loss_scale(trainer.loss)
        )
        logged = next(entry for entry in reversed(trainer.state.log_history) if "gcbs/closed" in entry)
        noted.append((own.closed or 0.0, logged["gcbs/closed"]))
        return rows

    trainer.replanner.plan_rows = measuring
    return noted


def closed_of_all(run: Run) -> None:
    """What is logged as closed is that of batches of all processes together."""
    if run.trainer.is_world_process_zero():
        assert run.watched
        assert all(abs(own - logged) < 0.2 for own, logged in run.watched), run.watched


class Sharded:
    """What accelerate says of a run that DeepSpeed has been set up for, with ZeRO stage 3, or FSDP2."""

    def __init__(self, state: Any, **plugins: Any) -> None:
        self.state = state
        vars(self).update(plugins)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.state, name)


def zero_3(trainer: Any) -> None:
    """DeepSpeed itself is not installed for the tests."""
    trainer.accelerator.state = Sharded(trainer.accelerator.state, deepspeed_plugin=SimpleNamespace(zero_stage=3))


def fsdp(trainer: Any) -> None:
    """On a CPU the host leaves FSDP off; for real shards see ``test_sharded.py``."""
    trainer.is_fsdp_enabled = True
    trainer.accelerator.state = Sharded(trainer.accelerator.state, fsdp_plugin=SimpleNamespace(fsdp_version=2))


SHARDED = "no process holds all weights; use `harvest`, or DDP"
ALONE = "one process has nothing to split"
CASES = [
    Case(
        "`gather_across_devices`: planned as one batch",
        loss=lambda model: MultipleNegativesRankingLoss(model, gather_across_devices=True),
        watch=qualities, check=closed_of_all, quick=True,
    ),
    Case(
        "... with gradient caching",
        model=bert,
        loss=lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=4, gather_across_devices=True),
        watch=qualities, check=closed_of_all,
    ),
    Case(
        "... two datasets",
        rows=two_sets, loss=lambda model: MultipleNegativesRankingLoss(model, gather_across_devices=True),
        arguments={"multi_dataset_batch_sampler": "proportional"}, steps=(32, 14), save_at=(22, 10),
    ),
    Case("batches that do not fill the last step", rows=lambda: pairs(FEWER_ROWS), steps=(14, 6), save_at=(10, 4)),
    Case(
        "three processes",
        ranks=3, steps=(22, 6), save_at=(16, 4),
        cells={
            **everywhere(WORKS), **dict.fromkeys((SINGLE, RESUME), not_applicable("of one process: see above")),
        },
    ),
    Case(
        "FSDP2 without `harvest` (under DDP simulated)",
        arguments=lambda place: {"fsdp": True} if place.ranks == 1 else {}, watch=fsdp,
        cells={
            **dict.fromkeys((SINGLE, RESUME), refused("not in one process (host)", "ValueError", "fsdp")),
            **dict.fromkeys((DDP, DDP_RESUME), refused(SHARDED, "ValueError", "FSDP: got embedding_source='encode'")),
        },
    ),
    Case(
        "DeepSpeed ZeRO-3 without `harvest` (simulated)",
        watch=zero_3,
        cells=everywhere(
            refused(SHARDED + ", or ZeRO 1 or 2", "ValueError", "DeepSpeed ZeRO-3: got embedding_source='encode'")
        ),
    ),
    Case(
        "`dispatch_batches`",
        arguments={"accelerator_config": {"dispatch_batches": True}},
        cells=everywhere(
            refused(
                "batches would be cut anew; leave it at None",
                "ValueError", "accelerator_config.dispatch_batches: got a run that uses it",
            )
        ),
    ),
    Case(
        "`split_batches`",
        arguments={"accelerator_config": {"split_batches": True}},
        cells={
            SINGLE: WORKS, RESUME: WORKS,
            **dict.fromkeys(
                (DDP, DDP_RESUME),
                refused(
                    "batches would be cut; give one process's rows",
                    "ValueError", "accelerator_config.split_batches: got a run that uses it",
                ),
            ),
        },
    ),
    Case(
        "several IterableDatasets",
        rows=lambda: {"first": pairs().to_iterable_dataset()}, quick=True,
        cells=everywhere(
            refused("of several rows are drawn by number; load a `Dataset`", "TypeError", "got IterableDataset")
        ),
    ),
]  # fmt: skip
