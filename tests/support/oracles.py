"""Plain, slow references that the package must agree with: written from the definitions, not from the code."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

TAIL = 10


def reference_gcbs(anchors: np.ndarray, positives: np.ndarray, quantile: float, *, exact: bool = False) -> np.ndarray:
    """(n,) order: all products as one dense matrix, one quantile of them, what is above it, Cuthill-McKee.

    `exact` interpolates in double precision: in single precision the quantile may round to the upper of the
    two products between which it lies, which is then not above it.
    """
    products = anchors.astype(np.float32) @ positives.astype(np.float32).T
    threshold = np.quantile(products.astype(np.float64) if exact else products, quantile)
    graph = csr_array((products > threshold).astype(np.int8))
    return reverse_cuthill_mckee(graph, symmetric_mode=False)


def log_sum_exp(values: list[float]) -> float:
    """The log of the sum of exponentials."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def loss(scores: np.ndarray, i: int, members: list[int]) -> float:
    """The loss of anchor i against the positives of some rows, i among them."""
    return log_sum_exp([float(scores[i, j]) for j in members]) - float(scores[i, i])


def batches_of(order: np.ndarray, batch_size: int) -> list[list[int]]:
    """The whole batches of an order."""
    return [order[at : at + batch_size].tolist() for at in range(0, len(order) - batch_size + 1, batch_size)]


def in_batch_quality(
    anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, batch_size: int, scale: float
) -> dict[str, float]:
    """Of the figures of a plan those that need only the scores inside batches: thousands of rows take a second."""
    scores = scale * (anchors.astype(np.float64) @ positives.astype(np.float64).T)
    pairs = [(i, batch) for batch in batches_of(order, batch_size) for i in batch]
    return {
        "train": sum(loss(scores, i, batch) for i, batch in pairs) / len(pairs),
        "false_negatives": sum(scores[i, j] > scores[i, i] for i, batch in pairs for j in batch) / len(pairs),
    }


def plan_quality(
    anchors: np.ndarray, positives: np.ndarray, order: np.ndarray, batch_size: int, scale: float
) -> dict[str, float]:
    """The figures of a plan over all its whole batches, one anchor and one negative at a time.

    Also `gap_limit`, where every anchor chooses its own hardest negatives.
    """
    n = len(anchors)
    scores = scale * (anchors.astype(np.float64) @ positives.astype(np.float64).T)
    sums = dict.fromkeys(("train", "global_loss", "gap_bound", "tail_coverage", "false_negatives", "gap_limit"), 0.0)
    anchors_measured = 0
    for batch in batches_of(order, batch_size):
        for i in batch:
            anchors_measured += 1
            negatives = sorted((j for j in range(n) if j != i), key=lambda j, i=i: -scores[i, j])
            sums["train"] += loss(scores, i, batch)
            global_loss = loss(scores, i, list(range(n)))
            sums["global_loss"] += global_loss
            sums["gap_limit"] += global_loss - loss(scores, i, [i, *negatives[: batch_size - 1]])
            mean = sum(float(scores[i, j]) for j in batch) / batch_size
            sums["gap_bound"] += max(float(scores[i, j]) for j in range(n)) - mean + math.log(n / batch_size)
            tail = negatives[:TAIL]
            sums["tail_coverage"] += sum(j in batch for j in tail) / len(tail) if tail else 0.0
            sums["false_negatives"] += sum(1 for j in batch if scores[i, j] > scores[i, i])
    means = {key: total / anchors_measured for key, total in sums.items()}
    return {**means, "gap": means["global_loss"] - means["train"]}


def batches_with_a_value_twice(values: np.ndarray, order: np.ndarray, batch_size: int) -> list[int]:
    """The batches in which two different rows hold the same value, in whichever columns."""
    found = []
    for batch in range(len(order) // batch_size):
        rows = [int(row) for row in order[batch * batch_size : (batch + 1) * batch_size]]
        for position, row in enumerate(rows):
            for other in rows[:position]:
                if any(a == b for a in values[row].tolist() for b in values[other].tolist()):
                    found.append(batch)
    return sorted(set(found))


class SlowChains:
    """EMC2 one row and one proposal at a time; numbers are drawn as `EMC2Loss` documents, from seed and visit."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.clock = 0
        self.state: dict[int, int] = {}
        self.score: dict[int, float] = {}

    def visit(self, ids: list[int], scores: np.ndarray, direction: int = 0) -> dict[int, list[int]]:
        """The samples of each row of the batch; `scores` are of all rows with all rows, as they are now."""
        self.clock += 1
        key = [self.seed, 0, self.clock, direction]
        number = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
        size, samples = len(ids), {}
        chances = torch.rand(size, size - 1, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        for place, row in enumerate(ids):
            samples[row] = []
            for step in range(size - 1):
                candidate = ids[(place + step + 1) % size]
                proposed = np.float32(scores[row, candidate])
                if row not in self.state or math.log(chances[place, step]) < proposed - self.score[row]:
                    self.state[row], self.score[row] = candidate, proposed
                if step >= (size - 1) // 2:
                    samples[row].append(self.state[row])
        return samples
