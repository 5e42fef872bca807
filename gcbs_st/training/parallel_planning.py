"""One plan by several processes: the rows are cut into as many cells as there are processes, each plans its own.

A cell is made by the first levels of a bisection, so rows that belong together are in one, and little is lost where
a batch could have had rows of two.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from gcbs_st.planners import Planner
from gcbs_st.planners.algorithms.trees import cut_cells, project_pairs
from gcbs_st.planners.base import abilities_of, configured, order_checked_rows
from gcbs_st.ranks import agree, failing_together, fair_threads, gather_rows, scatter_rows


def splits_work(planner: Planner, processes: int) -> bool:
    """Returns whether a planner's work is done by all processes.

    A planner that `splits` makes of a cell of rows nearly what its plan of all rows makes of them, and takes longer for
    it than the rows take to be sent. `bisect` does not.
    """
    return processes > 1 and abilities_of(planner).splits


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

    Cost: the planner's own for n / processes rows on each; beside it O(n d 128) time to cut the cells on the main
    process, which sends to each the embeddings of its rows and no more.

    Args:
        planner: the same everywhere.
        pairs: (n, d) anchors and positives on the main process, as `check_pairs` gives them, n a multiple of
            `batch_size`; None on the others.
        batch_size: rows a batch.
        rng: of this plan; that of the main process is used.
        processes: of the run.
        device: that the processes exchange tensors from.

    Returns:
        (n,) int64 on the main process; empty on the others.
    """
    order, counts, seed = np.empty(0, np.int64), [0] * processes, 0
    with failing_together("cutting the rows into cells", processes):
        if pairs is not None:
            anchors, positives = pairs
            batches = len(anchors) // batch_size
            counts = [
                batch_size * (batches * (i + 1) // processes - batches * i // processes) for i in range(processes)
            ]
            points = project_pairs(anchors, positives, np.arange(len(anchors)), rng)
            order, seed = cut_cells(points, counts, rng), int(rng.integers(2**31))
    counts, seed = agree((counts, seed), processes)
    sent = (None, None) if pairs is None else (pairs[0][order], pairs[1][order])
    anchors, positives = (scatter_rows(side, counts, device) for side in sent)
    rank = dist.get_rank()
    with failing_together("planning a cell", processes):
        own_rng = np.random.default_rng([seed, rank])
        planned = order_checked_rows(fairly_threaded(planner, processes), anchors, positives, batch_size, own_rng)
        planned = planned + sum(counts[:rank])
    gathered = gather_rows(planned, processes, device)
    return order[gathered] if pairs is not None else gathered


def fairly_threaded(planner: Planner, processes: int) -> Planner:
    """Returns the planner with its share of the machine's cores, where it was not told a number of threads."""
    return configured(planner, threads=fair_threads(processes)) if getattr(planner, "threads", None) == 0 else planner
