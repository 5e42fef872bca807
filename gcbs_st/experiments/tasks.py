"""What an experiment measures: a configuration in, tasks and how they are scored out.

Two kinds, STS and code search, that training, comparisons and reports treat alike: tasks by name, one of which is
for choosing (the dev task), and one score of that which is chosen by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sentence_transformers import SentenceTransformer

from gcbs_st.config import ConfigError, CorpusConfig, EvaluationConfig
from gcbs_st.corpora.corpus import load_corpus
from gcbs_st.evaluation.code_search import (
    CodeSearchEvaluator,
    CodeSearchTask,
    evaluate_code_search,
    load_cosqa,
    task_of_pairs,
)
from gcbs_st.evaluation.evaluator import ScoreEvaluator
from gcbs_st.evaluation.sts import StsEvaluator, evaluate_sts
from gcbs_st.evaluation.sts_tasks import SPLITS, StsTask, load_sts_tasks

Tasks = Mapping[str, StsTask | CodeSearchTask]


@dataclass(frozen=True)
class Scoring:
    """How tasks of one kind are scored."""

    name: str  # of the kind, in words
    dev_task: str  # the task that settings, checkpoints and times to a score go by
    dev_metric: str  # its score that they go by
    evaluate: Callable[..., dict[str, float]]  # model, tasks, `batch_size` -> scores by name
    evaluator: Callable[..., ScoreEvaluator]  # tasks, `batch_size` -> the trainer's evaluator

    def dev_score(self, model: SentenceTransformer, task: Any, batch_size: int) -> float:
        """Returns the score x 100 of the dev task that is chosen by."""
        return self.evaluate(model, {self.dev_task: task}, batch_size=batch_size)[self.dev_metric]


STS = Scoring("STS", "STSBenchmark-dev", "STSBenchmark-dev", evaluate_sts, StsEvaluator)
CODE_SEARCH = Scoring("code search", "code-dev", "code-dev_mrr", evaluate_code_search, CodeSearchEvaluator)


def scoring_of(config: EvaluationConfig) -> Scoring:
    """Returns how an experiment's models are scored: code search where the configuration has it, STS otherwise."""
    return STS if config.code_search is None else CODE_SEARCH


def load_tasks(config: EvaluationConfig) -> Tasks:
    """Returns the tasks of an experiment by name, those of the splits that it asks for.

    Code search: `code-dev`, `code-test` and `CoSQA-dev`, the last two with the split test. STS: see `load_sts_tasks`.
    Raises a ConfigError for an unknown split, or none that has a task.
    """
    code = config.code_search
    if code is None:
        return load_sts_tasks(config.sts, splits=config.splits)
    wanted = {"dev": code.dev, "test": code.test}
    if not set(config.splits) <= set(SPLITS) or not any(wanted.get(split) for split in config.splits):
        raise ConfigError(
            f"evaluation.splits: got {config.splits}, expected dev, test or both, as evaluation.code_search has them."
        )
    others = list(_rows(code.functions)["anchor"]) if code.functions else []
    tasks = {}
    for split, corpus in wanted.items():
        if split in config.splits and corpus is not None:
            rows = _rows(corpus)
            name = f"code-{split}"
            tasks[name] = task_of_pairs(name, list(rows["anchor"]), list(rows["positive"]), others=others)
    if code.cosqa is not None and "test" in config.splits:
        cosqa = load_cosqa(code.cosqa)
        tasks[cosqa.name] = cosqa
    return tasks


def _rows(corpus: CorpusConfig) -> Any:
    options = dataclasses.asdict(corpus)
    if options.pop("held_out"):
        raise ConfigError("evaluation.code_search: held_out is a key of corpus alone; drop it here.")
    return load_corpus(**options)
