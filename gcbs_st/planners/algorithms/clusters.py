"""Batches that are made of several clusters of near rows, and how hard they get over a run."""

from __future__ import annotations


def clusters_at(share: float, batch_size: int, clusters_at_end: int) -> int:
    """Returns how many clusters make a batch at some point of a curriculum (NGAME, arXiv 2207.04452).

    The stages are divisors of the batch size, each about half of the one before, from clusters of a single row, which
    is random batches, to `clusters_at_end`. Each stage lasts as long as every other.

    Args:
        share: of the run that is behind, in [0, 1].
        batch_size: rows that are planned as one batch.
        clusters_at_end: in the last stage, a divisor of `batch_size`.

    Example:
        >>> [clusters_at(share / 4, batch_size=8, clusters_at_end=1) for share in range(5)]
        [8, 4, 2, 1, 1]
        >>> [clusters_at(share / 4, batch_size=12, clusters_at_end=1) for share in range(4)]
        [12, 4, 2, 1]
    """
    stages = [clusters_at_end]
    while stages[-1] < batch_size:
        divisors = (n for n in range(min(2 * stages[-1], batch_size), batch_size + 1) if batch_size % n == 0)
        stages.append(next(divisors))
    return stages[max(0, len(stages) - 1 - int(share * len(stages)))]
