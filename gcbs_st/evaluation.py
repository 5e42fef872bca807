"""Score a model: STS by SimCSE's protocol, and how high held-out positives rank.

In: a sentence-transformers model and the tasks of ``gcbs_st.sts_data``.
Out: plain floats, Spearman or MRR x 100.
Why: papers on contrastive learning report STS by one protocol (all sub-sets of a task concatenated, ONE Spearman of
the cosine, SICK-R on its test part, plain mean over the tasks), and differences between batch planners are smaller
than differences between protocols. The same tasks run through mteb in ``gcbs_st.mteb_protocol``, which is apart so
that importing this module does not import mteb.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import SentenceEvaluator

from gcbs_st.embeddings import preserved_state
from gcbs_st.ranking import compare_with_gold, mean_reciprocal_rank
from gcbs_st.sts_data import StsTask

# Cosines of one collapsed embedding still differ in the last bits of float32, and their ranks would look like a score.
_SAME_COSINE = 1e-6


def evaluate_sts(
    model: SentenceTransformer, tasks: Mapping[str, StsTask], *, batch_size: int = 128, show_progress: bool = False
) -> dict[str, float]:
    """Return Spearman x 100 of the cosines for each task, and their average by SimCSE's protocol.

    Each distinct text of all tasks is encoded once, in evaluation mode and with the model's default prompt. The
    model's training mode and the global random numbers are left as they were.

    Args:
        model: The model to score.
        tasks: Tasks by name, as ``load_sts_tasks`` returns them.
        batch_size: Texts a forward pass.
        show_progress: Whether to show the progress bar of ``encode``.

    Returns:
        Task -> score in [-100, 100], plus ``avg``, the plain mean of the test tasks. Tasks named ``-dev``, ``-train``
        and ``-all`` are scored but not averaged; without any test task there is no ``avg``.

    Raises:
        ValueError: If there are no tasks, or a task's score is undefined (NaN embeddings, constant scores or cosines).
    """
    if not tasks:
        raise ValueError("evaluate_sts: got no tasks, expected at least one StsTask")
    rows, embeddings = encode_distinct(
        model,
        [[*task.sentence1, *task.sentence2] for task in tasks.values()],
        batch_size,
        show_progress=show_progress,
    )
    scores = {}
    for (name, task), pair_rows in zip(tasks.items(), rows, strict=True):
        first, second = embeddings[pair_rows.reshape(2, -1)]
        scores[name] = _correlate(name, task.scores, np.einsum("nd,nd->n", first, second))
    return add_average(scores)


def add_average(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores plus ``avg``, the plain mean of the test tasks, if there are any."""
    test_scores = [score for name, score in scores.items() if not name.endswith(("-dev", "-train", "-all"))]
    return {**scores, "avg": statistics.fmean(test_scores)} if test_scores else dict(scores)


def heldout_mrr(
    model: SentenceTransformer,
    anchors: Sequence[str],
    positives: Sequence[str],
    *,
    batch_size: int = 128,
    chunk: int = 512,
) -> float:
    """Return MRR x 100 of finding positive i from anchor i among all n positives, by cosine.

    The rank of a positive is 1 + the number of strictly closer rows + half the number of other rows tied with it:
    what a random order of the ties gives on average, so a model that maps all texts to one point scores
    100 / (1 + (n - 1) / 2) and not 100.

    Cost: O(n^2 d) time, O(chunk n) memory.

    Args:
        model: The model to score.
        anchors: n texts.
        positives: n texts; repeated texts are ties.
        batch_size: Texts a forward pass.
        chunk: Anchors compared at a time.

    Returns:
        Mean reciprocal rank x 100, in (0, 100].

    Raises:
        ValueError: If the texts are none or not paired, chunk is below 1, or an embedding is NaN or infinite.
    """
    if len(anchors) != len(positives) or not len(anchors):
        raise ValueError(f"MRR: got {len(anchors)} anchors and {len(positives)} positives, expected as many, not none")
    (anchor_rows, positive_rows), embeddings = encode_distinct(model, [anchors, positives], batch_size)
    closer, tied = compare_with_gold(
        embeddings[anchor_rows], embeddings[positive_rows], np.arange(len(anchors)), chunk=chunk
    )
    return mean_reciprocal_rank(closer, tied)


def _correlate(name: str, scores: Sequence[float], cosines: np.ndarray) -> float:
    if not np.isfinite(cosines).all():
        raise ValueError(f"STS task {name}: NaN embeddings; the model has diverged or its weights were not loaded")
    if not np.isfinite(scores).all() or np.ptp(scores) == 0:
        raise ValueError(f"STS task {name}: gold scores are constant or not finite, Spearman is undefined")
    if np.ptp(cosines) <= _SAME_COSINE:
        raise ValueError(
            f"STS task {name}: all cosines are equal, Spearman is undefined; the embeddings have collapsed"
        )
    return 100 * float(spearmanr(scores, cosines).statistic)


def encode_distinct(
    model: SentenceTransformer, text_lists: Sequence[Sequence[str]], batch_size: int, *, show_progress: bool = False
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return for each list the rows of its texts, and the embeddings of the distinct texts of all lists.

    The model's modes and the global random numbers are left as they were.

    Args:
        model: The model that embeds, with its default prompt.
        text_lists: Lists of texts.
        batch_size: Texts a forward pass.
        show_progress: Whether to show the progress bar of ``encode``.

    Returns:
        An (n,) int64 array a list, and (distinct, d) float32 unit rows.
    """
    row_of = {text: row for row, text in enumerate(dict.fromkeys(text for texts in text_lists for text in texts))}
    with preserved_state(model):
        embeddings = model.encode(
            list(row_of),
            batch_size=batch_size,
            show_progress_bar=show_progress,
            normalize_embeddings=True,
            convert_to_numpy=True,
        )
    rows = [np.array([row_of[text] for text in texts], dtype=np.int64) for texts in text_lists]
    return rows, np.asarray(embeddings, dtype=np.float32)


class ScoreEvaluator(SentenceEvaluator):
    """Evaluator for the trainer: what a function scores, in the log, the model card and a CSV file.

    Checkpoints are chosen by ``primary_metric``: with ``metric_for_best_model=f"eval_{evaluator.primary_metric}"``
    and ``load_best_model_at_end=True``.

    Args:
        measure: Model -> scores by name, the greater the better.
        scored: Names of the scores, in the order of the CSV file's columns.
        primary: The score that chooses the best checkpoint.
        name: Prefix of the metrics and part of the CSV file's name; may be empty.
        kind: Begins the CSV file's name.
        suffix: Of the metrics' names.
        heading: Of the metrics in the model card.
    """

    def __init__(
        self,
        measure: Callable[[SentenceTransformer], dict[str, float]],
        scored: Sequence[str],
        primary: str,
        *,
        name: str,
        kind: str,
        heading: str,
        suffix: str = "",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # the host's has no annotations
        self.name = name
        self._measure, self._suffix, self._heading = measure, suffix, heading
        self.greater_is_better = True
        self.primary_metric = self._metric(primary)
        self.csv_file = f"{kind}_evaluation{'_' + name if name else ''}_results.csv"
        self.csv_headers = ["epoch", "steps", *(f"{score}{suffix}" for score in scored)]

    def __call__(  # type: ignore[override] # narrower model, as in the host's own evaluators
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return the metrics, log them to the model card and, with an output path, append them to the CSV file.

        Args:
            model: The model to score.
            output_path: Folder of the CSV file, made if absent; None writes nothing.
            epoch: Epoch of the CSV row, a fraction when the trainer calls; -1 after training.
            steps: Steps of the CSV row; -1 at the end of an epoch.

        Returns:
            ``{name}_{score}{suffix}`` -> score.
        """
        scores = self._measure(model)
        if output_path is not None:
            path = Path(output_path) / self.csv_file
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [] if path.exists() else [self.csv_headers]
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([*rows, [epoch, steps, *scores.values()]])
        metrics = {self._metric(score): value for score, value in scores.items()}
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics

    @property
    def description(self) -> str:
        """Heading of the metrics in the model card."""
        return self._heading

    def _metric(self, score: str) -> str:
        return f"{self.name}_{score}{self._suffix}" if self.name else f"{score}{self._suffix}"


class StsEvaluator(ScoreEvaluator):
    """Evaluator for the trainer that scores STS tasks by SimCSE's protocol (Spearman x 100).

    Metrics are named ``{name}_{task}_spearman``.

    Args:
        tasks: Tasks by name, as ``load_sts_tasks`` returns them.
        name: Prefix of the metrics and part of the CSV file's name.
        batch_size: Texts a forward pass.
        show_progress: Whether to show the progress bar of ``encode``.
        primary_task: Task (or ``avg``) that chooses the best checkpoint. Default: the only task, else
            ``STSBenchmark-dev`` as SimCSE does, else ``avg``.

    Raises:
        ValueError: If there are no tasks, or the primary task is not among them or cannot be told.
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
