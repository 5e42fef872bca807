"""Batches that are made of several clusters of near rows, and how hard they get over a run."""

from __future__ import annotations

import math

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


def rows_per_cluster(hardness: float, batch_size: int) -> int:
    """Returns how many rows of a plan stay together in a batch, B ** hardness: 1 is a random batch, B a planned one.

    >>> [rows_per_cluster(hardness, 64) for hardness in (0.0, 0.5, 0.75, 1.0)]
    [1, 8, 23, 64]
    """
    return max(1, min(batch_size, round(batch_size**hardness)))


def hardness_of(cluster_size: int, batch_size: int) -> float:
    """Returns the hardness of batches of clusters of so many rows, the inverse of `rows_per_cluster`.

    >>> [hardness_of(rows, 64) for rows in (1, 8, 64)]
    [0.0, 0.5, 1.0]
    """
    return math.log(cluster_size) / math.log(batch_size) if batch_size > 1 else 1.0


def deal_clusters(order: np.ndarray, cluster_size: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns an order each of whose batches is made of clusters that are drawn at random, of any two sizes.

    Blocks of `cluster_size` rows of the (n,) `order` are clusters, what is left behind them is one too. A batch takes
    as many whole ones as fit, and fills up with the rows of clusters that are broken up for it, side by side. These
    stand at its end, so that the clusters of a dealt order can be told by their places, see `redeal_clusters`.
    The last n mod `batch_size` rows fill no batch. With clusters of a batch each nothing is changed.

    >>> deal_clusters(np.arange(12), 2, 5, np.random.default_rng(0)).tolist()
    [6, 7, 4, 5, 0, 10, 11, 8, 9, 1, 2, 3]
    """
    if cluster_size == batch_size:
        return order
    batches, whole = len(order) // batch_size, batch_size // cluster_size
    count = len(order) // cluster_size
    clusters = rng.permutation(order[: count * cluster_size].reshape(count, cluster_size))
    kept, broken = clusters[: batches * whole], clusters[batches * whole :].ravel()
    broken = np.concatenate([broken, order[count * cluster_size :]])
    fill = batch_size - whole * cluster_size
    dealt = [kept.reshape(batches, whole * cluster_size), broken[: batches * fill].reshape(batches, fill)]
    return np.concatenate([np.concatenate(dealt, axis=1).ravel(), broken[batches * fill :]])


def redeal_clusters(order: np.ndarray, cluster_size: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the clusters of dealt batches in other batches: (m,) as `deal_clusters` returns it, m in whole batches.

    O(m) time: what a plan from embeddings that have not changed needs to meet new rows.
    """
    if cluster_size == batch_size:
        return order
    batches, whole = order.reshape(-1, batch_size), batch_size // cluster_size * cluster_size
    clusters = rng.permutation(batches[:, :whole].reshape(-1, cluster_size)).reshape(-1, whole)
    return np.concatenate([clusters, rng.permutation(batches[:, whole:])], axis=1).ravel()


def without_repeats(order: np.ndarray, batch_size: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Returns whole batches of 0..rows - 1 in which rows that stand twice in a batch gave way to random others.

    >>> without_repeats(np.array([3, 3]), 2, 5, np.random.default_rng(0)).tolist()
    [3, 4]
    """
    batches = order.reshape(-1, batch_size).copy()
    ranked = np.sort(batches, axis=1)
    for number in np.flatnonzero((ranked[:, 1:] == ranked[:, :-1]).any(axis=1)):
        batch = batches[number]
        first = np.unique(batch, return_index=True)[1]
        twice = np.setdiff1d(np.arange(batch_size), first)
        others = np.setdiff1d(np.arange(rows), batch, assume_unique=False)
        batch[twice] = rng.choice(others, len(twice), replace=False)
    return batches.ravel()


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
