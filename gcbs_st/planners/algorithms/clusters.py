"""Batches that are made of several clusters of near rows, and how hard they get over a run."""

from __future__ import annotations

import numpy as np


def clusters_at(share: float, batch_size: int, clusters_at_end: int) -> int:
    """Returns how many clusters make a batch at some point of a curriculum (NGAME, arXiv 2207.04452).

    The stages are divisors of the batch size, each about half of the one before, from clusters of a single row, which
    is random batches, to `clusters_at_end`, a divisor of `batch_size`. Each stage lasts as long as every other;
    `share` of the run, in [0, 1], is behind.

    >>> [clusters_at(share / 4, batch_size=12, clusters_at_end=1) for share in range(4)]
    [12, 4, 2, 1]
    """
    stages = [clusters_at_end]
    while stages[-1] < batch_size:
        divisors = (n for n in range(min(2 * stages[-1], batch_size), batch_size + 1) if batch_size % n == 0)
        stages.append(next(divisors))
    return stages[max(0, len(stages) - 1 - int(share * len(stages)))]


def draw_rest(n: int, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows that fill whole batches, ascending, and the n mod B random rows that fill none."""
    rest = rng.choice(n, n % batch_size, replace=False) if n % batch_size else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(n), rest, assume_unique=True), rest.astype(np.int64)


def cluster_size_of(batch_size: int, clusters_per_batch: int) -> int:
    """Returns the rows per cluster; raises a ValueError if `clusters_per_batch` does not divide `batch_size`."""
    if batch_size % clusters_per_batch:
        raise ValueError(
            f"clusters_per_batch: got {clusters_per_batch} with batches of {batch_size} rows, expected a divisor of "
            f"{batch_size}, so that all clusters have the same number of rows."
        )
    return batch_size // clusters_per_batch


def finish_order(
    order: np.ndarray, rest: np.ndarray, cluster_size: int, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns the whole (m + len(rest),) int64 order, its clusters shuffled where a batch is made of several.

    Blocks of `cluster_size` rows of the (m,) `order` are clusters; `rest` are the rows that fill no batch.
    """
    if cluster_size < batch_size:
        order = rng.permutation(order.reshape(-1, cluster_size)).ravel()
    return np.concatenate([order, rest]).astype(np.int64)
