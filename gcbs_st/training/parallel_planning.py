"""One plan by several ranks: the rows are cut into as many cells as there are ranks, each plans its own.

A cell is made by the first levels of a bisection, so rows that belong together are in one, and little is lost where
a batch could have had rows of two.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist

from gcbs_st.planners import Planner
from gcbs_st.planners.algorithms.contradictions import Contradictions
from gcbs_st.planners.algorithms.trees import cut_cells, project_pairs
from gcbs_st.planners.base import abilities_of, configured
from gcbs_st.planners.cells import plan_cell
from gcbs_st.ranks import agree, failing_together, fair_threads, gather_rows, scatter_rows


def splits_work(planner: Planner, ranks: int) -> bool:
    """Returns whether a planner's work is done by all ranks.

    A planner that `splits` makes of a cell of rows nearly what its plan of all rows makes of them, and takes longer for
    it than the rows take to be sent. `bisect` does not.
    """
    return ranks > 1 and abilities_of(planner).splits


def plan_with_all(
    planner: Planner,
    pairs: tuple[np.ndarray, np.ndarray] | None,
    batch_size: int,
    rng: np.random.Generator,
    *,
    ranks: int,
    device: torch.device,
) -> np.ndarray:
    """Returns a plan that all ranks made, each of its own cell of rows. To be called by all of them.

    The order depends on the number of ranks, and not on that of their threads. `pairs` are the (n, d) anchors and
    positives on the main rank, as `check_pairs` gives them, n a multiple of `batch_size`, and None on the others; the
    result is (n,) int64 on the main rank and empty on the others. `rng` is that of the main rank.

    Cost: the planner's own for n / ranks rows on each; beside it O(n d 128) time to cut the cells on the main rank,
    which sends to each the embeddings of its rows and no more.
    """
    order, counts, seed = np.empty(0, np.int64), [0] * ranks, 0
    against: Contradictions = getattr(planner, "contradictions", None) or Contradictions()
    with failing_together("cutting the rows into cells", ranks):
        if pairs is not None:
            anchors, positives = pairs
            batches = len(anchors) // batch_size
            counts = [batch_size * (batches * (i + 1) // ranks - batches * i // ranks) for i in range(ranks)]
            points = project_pairs(anchors, positives, np.arange(len(anchors)), rng)
            order, seed = cut_cells(points, counts, rng)[0], int(rng.integers(2**31))
            against = against.of(order)
    # Of what contradicts all ranks get all but the embeddings of a judge, which are as large as the rows' own.
    told, judged = replace(against, judge=None), against.judge is not None
    counts, seed, told, judged = agree((counts, seed, told, judged), ranks)
    sent = (None, None) if pairs is None else (pairs[0][order], pairs[1][order])
    anchors, positives = (scatter_rows(side, counts, device) for side in sent)
    rank = dist.get_rank()
    sides = [against.judge[0], against.judge[-1]] if against.judge is not None else [None, None]
    judge = [scatter_rows(side, counts, device) for side in sides] if judged else None
    cell = told.of(np.arange(sum(counts[:rank]), sum(counts[: rank + 1])))
    own = replace(cell, judge=judge) if told or judged else None
    planner = fairly_threaded(planner, ranks)
    with failing_together("planning a cell", ranks):
        planned = plan_cell(planner, anchors, positives, batch_size, seed=seed, number=rank, against=own)
        planned = planned + sum(counts[:rank])
    gathered = gather_rows(planned, ranks, device)
    return order[gathered] if pairs is not None else gathered


def fairly_threaded(planner: Planner, ranks: int) -> Planner:
    """Returns the planner with its share of the machine's cores, where it was not told a number of threads."""
    return configured(planner, threads=fair_threads(ranks)) if getattr(planner, "threads", None) == 0 else planner
