"""A configuration in, the data of its runs out: the rows that they train on and the tasks that they are scored on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from gcbs_st.config import ExperimentConfig
from gcbs_st.corpora.corpus import load_corpus, split_held_out
from gcbs_st.experiments.tasks import Tasks, load_tasks
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
    return ExperimentData(train, held_out, load_tasks(config.evaluation), corpus_hash(train))


def load_rows(config: ExperimentConfig) -> tuple[Dataset, Dataset | None]:
    """Returns the training rows of an experiment, and its held-out rows or None; raises as `load_data` does."""
    options = dataclasses.asdict(config.corpus)
    held_out_rows = options.pop("held_out")
    corpus = load_corpus(**options)
    return split_held_out(corpus, held_out_rows) if held_out_rows else (corpus, None)
