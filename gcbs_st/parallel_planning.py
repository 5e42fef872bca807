"""One plan by several processes: the rows are cut into as many cells as there are processes, each plans its own.

A cell is made by the first levels of a bisection, so rows that belong together are in one, and little is lost where
a batch could have had rows of two.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.distributed as dist

from gcbs_st.planners import Planner
from gcbs_st.planners.base import check_pairs
from gcbs_st.planners.trees import DIMS, cut_cells, project_pairs
from gcbs_st.ranks import agree, failing_together, fair_threads, gather_rows, scatter_rows


def splits_work(planner: Planner, processes: int) -> bool:
    """Returns whether a planner's work is done by all processes.

    Args:
        planner: one with an attribute `splits` that is true has a plan of a cell of rows that is nearly what its
            plan of all rows makes of them, and takes longer for it than the rows take to be sent. `bisect` does not.
        processes: of the run.
    """
    return processes > 1 and bool(getattr(planner, "splits", False))


def plan_with_all(
    planner: Planner,
    pairs: tuple[np.ndarray, np.ndarray] | None,
    batch_size: int,
    rng: np.random.Generator,
    *,
    processes: int,
    device: torch.device,
) -> np.ndarray:
    """Returns a plan that all processes made, each of its own cell of rows. To be called by all of them.

    The order depends on the number of processes, and not on that of their threads.

    Cost: the planner's own for n / processes rows on each; beside it O(n d dims) time to cut the cells on the main
    process, which sends to each the embeddings of its rows and no more.

    Args:
        planner: the same everywhere.
        pairs: (n, d) anchors and positives on the main process, n a multiple of `batch_size`; None on the others.
        batch_size: rows a batch.
        rng: of this plan; that of the main process is used.
        processes: of the run.
        device: that the processes exchange tensors from.

    Returns:
        (n,) int64 on the main process; empty on the others.

    Raises:
        ValueError: input that no planner takes, see `gcbs_st.planners.base.check_pairs`.
    """
    order, counts, seed = np.empty(0, np.int64), [0] * processes, 0
    with failing_together("cutting the rows into cells", processes):
        if pairs is not None:
            anchors, positives = check_pairs(*pairs, batch_size)
            batches = len(anchors) // batch_size
            counts = [
                batch_size * (batches * (i + 1) // processes - batches * i // processes) for i in range(processes)
            ]
            points = project_pairs(anchors, positives, np.arange(len(anchors)), DIMS, rng)
            order, seed = cut_cells(points, counts, rng), int(rng.integers(2**31))
    counts, seed = agree((counts, seed), processes)
    sent = (None, None) if pairs is None else (pairs[0][order], pairs[1][order])
    anchors, positives = (scatter_rows(side, counts, device) for side in sent)
    rank = dist.get_rank()
    worker = copy.copy(planner)
    if getattr(worker, "threads", None) == 0:
        worker.threads = fair_threads(processes)  # type: ignore[attr-defined]
    with failing_together("planning a cell", processes):
        planned = worker.plan(anchors, positives, batch_size, np.random.default_rng([seed, rank])) + sum(counts[:rank])
    gathered = gather_rows(planned, processes, device)
    return order[gathered] if pairs is not None else gathered
