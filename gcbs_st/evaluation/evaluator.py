"""What all evaluations share: encoding each distinct text once, and evaluators for the host's trainer."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import SentenceEvaluator

from gcbs_st.embeddings.encode import preserved_state


def encode_distinct(
    model: SentenceTransformer,
    text_lists: Sequence[Sequence[str]],
    batch_size: int,
    *,
    show_progress: bool = False,
    encode: Callable[..., Any] | None = None,
    normalize: bool = True,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns for each list the (n,) int64 rows of its texts in (distinct, d) float32 embeddings, and these.

    They are unit rows unless `normalize` is False. Texts are encoded with the model's default prompt, or by another
    method of its, `encode`. Its modes and the global random numbers are left as they were.
    """
    row_of = {text: row for row, text in enumerate(dict.fromkeys(text for texts in text_lists for text in texts))}
    with preserved_state(model):
        embeddings = (encode or model.encode)(
            list(row_of),
            batch_size=batch_size,
            show_progress_bar=show_progress,
            normalize_embeddings=normalize,
            convert_to_numpy=True,
        )
    rows = [np.array([row_of[text] for text in texts], dtype=np.int64) for texts in text_lists]
    return rows, np.asarray(embeddings, dtype=np.float32)


class ScoreEvaluator(SentenceEvaluator):
    """Evaluator for the trainer: puts scores into the log, the model card (below `heading`) and a CSV file.

    `measure` returns scores by name, the greater the better; `scored` has their names in the order of the CSV columns.
    Checkpoints are chosen by `primary_metric`: with `metric_for_best_model=f"eval_{evaluator.primary_metric}"`
    and `load_best_model_at_end=True`.
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
        """Returns `{name}_{score}{suffix}` -> score, logs them to the model card, and appends them to the CSV file.

        `output_path` is the CSV file's folder, made if absent; None writes nothing. `epoch` is a fraction when the
        trainer calls and -1 after training; `steps` is -1 at the end of an epoch.
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
