"""What an experiment measures: a configuration in, tasks and how they are scored out.

STS, retrieval and code search, which training, comparisons and reports treat alike: tasks by name, one of which is for
choosing (the dev task), and one score of that which is chosen by.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
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
from gcbs_st.evaluation.retrieval import evaluate_retrieval
from gcbs_st.evaluation.retrieval_tasks import RetrievalTask, load_retrieval_tasks
from gcbs_st.evaluation.sts import StsEvaluator, evaluate_sts
from gcbs_st.evaluation.sts_tasks import SPLITS, StsTask, load_sts_tasks

Task = StsTask | RetrievalTask | CodeSearchTask
Tasks = Mapping[str, Task]


@dataclass(frozen=True)
class Scoring:
    """How tasks of one kind are scored."""

    name: str  # of the kind, in words
    dev_task: str  # the task that settings, checkpoints and times to a score go by
    dev_metric: str  # its score that they go by
    evaluator: Callable[..., ScoreEvaluator]  # tasks, `batch_size` -> the trainer's evaluator
    bf16: bool = False  # whether texts are encoded under bfloat16 autocast

    def dev_score(self, model: SentenceTransformer, task: Any, batch_size: int) -> float:
        """Returns the score x 100 of the dev task that is chosen by."""
        with torch.autocast(model.device.type, torch.bfloat16, enabled=self.bf16):
            return evaluate_tasks(model, {self.dev_task: task}, batch_size=batch_size)[self.dev_metric]


def evaluate_tasks(model: SentenceTransformer, tasks: Tasks, *, batch_size: int = 128) -> dict[str, float]:
    """Returns the scores x 100 of a model by name on tasks of any kind, those of one kind together.

    `avg` is the mean of the STS tests and `retrieval_avg` that of the retrieval tests, where there are any.
    """
    scores: dict[str, float] = {}
    for kind, evaluate in _EVALUATE:
        if mine := {name: task for name, task in tasks.items() if isinstance(task, kind)}:
            scores |= evaluate(model, mine, batch_size=batch_size)
    return scores


_EVALUATE: tuple[tuple[type, Callable[..., dict[str, float]]], ...] = (
    (StsTask, evaluate_sts),
    (RetrievalTask, evaluate_retrieval),
    (CodeSearchTask, evaluate_code_search),
)
STS = Scoring("STS", "STSBenchmark-dev", "STSBenchmark-dev", StsEvaluator)
CODE_SEARCH = Scoring("code search", "code-dev", "code-dev_mrr", CodeSearchEvaluator)
HELD_OUT = Scoring("held-out pairs", "heldout", "heldout_mrr", functools.partial(CodeSearchEvaluator, name=""))


def scoring_of(config: EvaluationConfig) -> Scoring:
    """Returns how an experiment's models are scored: by code search where the configuration has it, else by its `dev`.

    Raises a ConfigError for a `dev` that there is not.
    """
    if config.code_search is not None:
        return dataclasses.replace(CODE_SEARCH, bf16=config.bf16)
    kinds = {"sts": STS, "heldout": HELD_OUT}
    if config.dev not in kinds:
        raise ConfigError(f"evaluation.dev: got {config.dev!r}, expected {' or '.join(kinds)}.")
    return dataclasses.replace(kinds[config.dev], bf16=config.bf16)


def load_tasks(config: EvaluationConfig) -> Tasks:
    """Returns the tasks of an experiment by name, those of the splits that it asks for.

    Code search: `code-dev`, `code-test` and `CoSQA-dev`, the last two with the split test. STS: see `load_sts_tasks`.
    Retrieval: the tests alone, with the split test. Raises a ConfigError for an unknown split, or none that has a task.
    """
    code, retrieval = config.code_search, config.retrieval
    if code is None:
        sts = load_sts_tasks(config.sts, splits=config.splits)
        if retrieval is None or "test" not in config.splits:
            return sts
        return {**sts, **load_retrieval_tasks(retrieval.folder, names=retrieval.tasks)}
    if retrieval is not None:
        raise ConfigError("evaluation.retrieval: is scored beside STS, not beside code search; drop one of the two.")
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
    if options.pop("held_out") or options.pop("also"):
        raise ConfigError("evaluation.code_search: held_out and also are keys of corpus alone; drop them here.")
    return load_corpus(**options)
