"""A configuration in, the data of its runs out: the rows that they train on and the tasks that they are scored on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from gcbs_st.config import ConfigError, CorpusConfig, ExperimentConfig
from gcbs_st.corpora.corpus import join_corpora, load_corpus, split_held_out
from gcbs_st.evaluation.code_search import task_of_pairs
from gcbs_st.experiments.tasks import HELD_OUT, Tasks, load_tasks, scoring_of
from gcbs_st.records.run_folder import RESULTS_FILE
from gcbs_st.rows.training_set import corpus_hash


@dataclass(frozen=True)
class ExperimentData:
    """What all runs of an experiment share."""

    train: Dataset  # the training rows
    held_out: Dataset | None  # pairs kept back, or None
    tasks: Tasks  # what models are scored on, by name
    corpus_hash: str  # of the training rows
    # Of texts that static models have met, see `remembered_tokens`.
    tokens: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def load_data(config: ExperimentConfig) -> ExperimentData:
    """Returns the data of an experiment; raises a ValueError or FileNotFoundError where it cannot be used."""
    train, held_out = load_rows(config)
    tasks = load_tasks(config.evaluation)
    if scoring_of(config.evaluation).dev_task == HELD_OUT.dev_task and "dev" in config.evaluation.splits:
        if held_out is None:
            raise ConfigError(
                "evaluation.dev: heldout needs pairs that are kept back: set corpus.held_out, such as 500."
            )
        pairs = task_of_pairs(HELD_OUT.dev_task, list(held_out["anchor"]), list(held_out["positive"]))
        tasks, held_out = {HELD_OUT.dev_task: pairs, **tasks}, None
    return ExperimentData(train, held_out, tasks, corpus_hash(train))


def load_rows(config: ExperimentConfig) -> tuple[Dataset, Dataset | None]:
    """Returns the training rows of an experiment, and its held-out rows or None; raises as `load_data` does."""
    corpus = load_rows_of(config.corpus)
    held_out_rows = config.corpus.held_out
    return split_held_out(corpus, held_out_rows) if held_out_rows else (corpus, None)


def load_trained_rows(
    folder: Path, config: ExperimentConfig, recorded: str, *, advice: str = "Train again."
) -> tuple[Dataset, Dataset]:
    """Returns the rows that a run in `folder` was trained on, as its plans count them: all columns, and without groups.

    Raises a ValueError, which ends with the advice, if the corpus no longer has the `recorded` hash.
    """
    rows, _ = load_rows(config)
    # The trainer saw the rows without their groups, unless it was asked to train on them.
    trained = rows.remove_columns("group") if "group" in rows.column_names else rows
    if recorded not in (corpus_hash(rows), corpus_hash(trained)):
        raise ValueError(
            f"{folder} was trained on a corpus of hash {recorded}, but {config.corpus.source!r} is another one now "
            f"({len(rows)} rows, hash {corpus_hash(rows)}). {advice}"
            if recorded
            else f"{folder}/{RESULTS_FILE} is damaged: it holds no corpus_hash."
        )
    return rows, trained


def load_rows_of(corpus: CorpusConfig) -> Dataset:
    """Returns all rows of a corpus, those of its further sources too."""
    options = dataclasses.asdict(corpus)
    del options["held_out"], options["also"]
    own = load_corpus(**options)
    if not corpus.also:
        return own
    if nested := next((part for part in corpus.also if part.held_out or part.also), None):
        raise ConfigError(f"corpus.also: {nested.source} has held_out or also of its own; set them at corpus alone.")
    return join_corpora([own, *map(load_rows_of, corpus.also)])
