"""Scores a model on STS by SimCSE's protocol, that of papers on contrastive learning.

All subsets of a task are concatenated, ONE Spearman of the cosine, SICK-R on its test part, plain mean over the tasks.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from gcbs_st.evaluation.evaluator import ScoreEvaluator, encode_distinct
from gcbs_st.evaluation.sts_tasks import StsTask

# Cosines of one collapsed embedding still differ in the last bits of float32, and their ranks would look like a score.
_SAME_COSINE = 1e-6


def evaluate_sts(
    model: SentenceTransformer, tasks: Mapping[str, StsTask], *, batch_size: int = 128, show_progress: bool = False
) -> dict[str, float]:
    """Returns Spearman x 100 of the cosines for each task, and `avg`, the mean of the test tasks if there are any.

    Tasks named `-dev`, `-train` and `-all` are scored but not averaged. Texts are encoded in evaluation mode with the
    model's default prompt; its training mode and the global random numbers are left as they were. Raises a ValueError
    if there are no tasks, or a score is undefined (NaN embeddings, constant scores or cosines).
    """
    if not tasks:
        raise ValueError("evaluate_sts: got no tasks, expected at least one StsTask")
    rows, embeddings = encode_distinct(
        model, [[*task.sentence1, *task.sentence2] for task in tasks.values()], batch_size, show_progress=show_progress
    )
    scores = {}
    for (name, task), pair_rows in zip(tasks.items(), rows, strict=True):
        first, second = embeddings[pair_rows.reshape(2, -1)]
        scores[name] = _correlate(name, task.scores, np.einsum("nd,nd->n", first, second))
    return add_average(scores)


def add_average(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores plus `avg`, the plain mean of the test tasks, if there are any."""
    test_scores = [score for name, score in scores.items() if not name.endswith(("-dev", "-train", "-all"))]
    return {**scores, "avg": statistics.fmean(test_scores)} if test_scores else dict(scores)


def _correlate(name: str, scores: Sequence[float], cosines: np.ndarray) -> float:
    if not np.isfinite(cosines).all():
        raise ValueError(f"STS task {name}: NaN embeddings; the model has diverged or its weights were not loaded")
    if not np.isfinite(scores).all() or np.ptp(scores) == 0:
        raise ValueError(f"STS task {name}: gold scores are constant or not finite, Spearman is undefined")
    if np.ptp(cosines) <= _SAME_COSINE:
        raise ValueError(f"STS task {name}: all cosines are equal; the embeddings have collapsed")
    return 100 * float(spearmanr(scores, cosines).statistic)


class StsEvaluator(ScoreEvaluator):
    """Evaluator for the trainer that scores STS tasks by SimCSE's protocol, as `{name}_{task}_spearman` x 100.

    `primary_task`, a task or `avg`, chooses the best checkpoint; None for the only task, else `STSBenchmark-dev` as
    SimCSE does, else `avg`. Raises a ValueError if that is not among the scores.
    """

    def __init__(
        self,
        tasks: Mapping[str, StsTask],
        *,
        name: str = "sts",
        batch_size: int = 128,
        show_progress: bool = False,
        primary_task: str | None = None,
    ) -> None:
        self.tasks = dict(tasks)
        scored = list(add_average(dict.fromkeys(self.tasks, 0.0)))
        fallbacks = [scored[0]] if len(self.tasks) == 1 else ["STSBenchmark-dev", "avg"]
        candidates = fallbacks if primary_task is None else [primary_task]
        chosen = next((task for task in candidates if task in scored), None)
        if chosen is None:
            raise ValueError(f"StsEvaluator: got primary_task {primary_task!r}, expected one of {scored}")
        super().__init__(
            lambda model: evaluate_sts(model, self.tasks, batch_size=batch_size, show_progress=show_progress),
            scored,
            chosen,
            name=name,
            kind="sts",
            suffix="_spearman",
            heading="Semantic Textual Similarity",
        )
