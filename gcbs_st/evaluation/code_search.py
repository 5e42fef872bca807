"""Scores a model on code search: how high each query ranks its function, among all functions of a task."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from gcbs_st.evaluation.evaluator import ScoreEvaluator, encode_distinct
from gcbs_st.evaluation.jsonl import read_jsonl
from gcbs_st.evaluation.ranking import compare_with_gold, mean_reciprocal_rank, recall_at

RECALL_AT = (1, 10)
COSQA_FUNCTIONS, COSQA_QUERIES = "cosqa_codes.jsonl.gz", "cosqa_dev.jsonl"


@dataclass(frozen=True)
class CodeSearchTask:
    """Queries, distinct functions, and for each query the row of its function; refuses anything else."""

    name: str
    queries: list[str]
    functions: list[str]
    gold: list[int]

    def __post_init__(self) -> None:
        if not self.queries or len(self.queries) != len(self.gold):
            raise ValueError(
                f"code search {self.name}: got {len(self.queries)} queries and {len(self.gold)} functions that they look "
                "for, expected as many, not none"
            )
        if not 0 <= min(self.gold) <= max(self.gold) < len(self.functions):
            raise ValueError(
                f"code search {self.name}: got gold rows {min(self.gold)} to {max(self.gold)}, expected rows of "
                f"{len(self.functions)} functions"
            )
        if len(set(self.functions)) < len(self.functions):
            repeated = len(self.functions) - len(set(self.functions))
            raise ValueError(f"code search {self.name}: {repeated} functions stand twice, expected each once")

    def facts(self) -> dict[str, Any]:
        """Returns the numbers of queries and functions, and a hash of all of it, for a record."""
        content = json.dumps([self.queries, self.functions, self.gold]).encode()
        digest = hashlib.sha256(content).hexdigest()[:16]
        return {"queries": len(self.queries), "functions": len(self.functions), "hash": digest}


def task_of_pairs(
    name: str, queries: Sequence[str], functions: Sequence[str], *, others: Sequence[str] = ()
) -> CodeSearchTask:
    """Returns the task of finding for each query its function, among the distinct functions and `others`."""
    if len(queries) != len(functions):
        counts = f"{len(queries)} queries and {len(functions)} functions"
        raise ValueError(f"code search {name}: got {counts}, expected as many")
    row_of = {text: row for row, text in enumerate(dict.fromkeys([*functions, *others]))}
    return CodeSearchTask(name, list(queries), list(row_of), [row_of[function] for function in functions])


def load_cosqa(folder: str | Path) -> CodeSearchTask:
    """Returns CoSQA's dev queries (Huang et al., ACL 2021, arXiv 2105.13239) over its retrieval corpus.

    The folder holds `cosqa_codes.jsonl.gz` with `id` and `code` (6,267 functions), and `cosqa_dev.jsonl` with `query`
    and `gold_id` (500 queries). A text that stands under several ids is one function. Errors name the file and the
    line.
    """
    place = Path(os.path.expandvars(folder)).expanduser()
    for file in (COSQA_FUNCTIONS, COSQA_QUERIES):
        if not (place / file).is_file():
            expected = f"expected a folder of {COSQA_FUNCTIONS} and {COSQA_QUERIES}"
            raise FileNotFoundError(f"CoSQA: no file {place / file}; {expected}")
    code_of: dict[int, str] = {}
    for where, row in _read_rows(place / COSQA_FUNCTIONS, {"id": int, "code": str}):
        if row["id"] in code_of:
            raise ValueError(f"{where}: the id {row['id']} stands twice, expected each once")
        code_of[row["id"]] = row["code"]
    queries, functions = [], []
    for where, row in _read_rows(place / COSQA_QUERIES, {"query": str, "gold_id": int}):
        if row["gold_id"] not in code_of:
            raise ValueError(f"{where}: got gold_id {row['gold_id']}, expected an id of {COSQA_FUNCTIONS}")
        queries.append(row["query"])
        functions.append(code_of[row["gold_id"]])
    return task_of_pairs("CoSQA-dev", queries, functions, others=list(code_of.values()))


def evaluate_code_search(
    model: SentenceTransformer, tasks: Mapping[str, CodeSearchTask], *, batch_size: int = 128
) -> dict[str, float]:
    """Returns `{task}_mrr`, `{task}_recall@1` and `{task}_recall@10`, in [0, 100], over all functions of each task.

    Texts are encoded in evaluation mode with the model's default prompt; its training mode and the global random
    numbers are left as they were. Raises a ValueError if there are no tasks, or an embedding is NaN or infinite.
    """
    if not tasks:
        raise ValueError("evaluate_code_search: got no tasks, expected at least one CodeSearchTask")
    scores = {}
    for name, task in tasks.items():
        (queries, functions), embeddings = encode_distinct(model, [task.queries, task.functions], batch_size)
        counts = compare_with_gold(embeddings[queries], embeddings[functions], np.array(task.gold))
        scores[f"{name}_mrr"] = mean_reciprocal_rank(*counts)
        scores |= {f"{name}_recall@{k}": recall_at(k, *counts) for k in RECALL_AT}
    return scores


class CodeSearchEvaluator(ScoreEvaluator):
    """Evaluator for the trainer that scores code search: `{name}_{task}_mrr` and recall of each task, x 100.

    The MRR of `primary_task`, by default the first one, chooses the best checkpoint. The host's
    `InformationRetrievalEvaluator` knows MRR@k only: for the MRR of papers k would be the whole pool, of which it then
    keeps a sorted list per query.
    """

    def __init__(
        self,
        tasks: Mapping[str, CodeSearchTask],
        *,
        name: str = "code",
        batch_size: int = 128,
        primary_task: str | None = None,
    ) -> None:
        self.tasks = dict(tasks)
        primary = next(iter(self.tasks), None) if primary_task is None else primary_task
        if primary not in self.tasks:
            raise ValueError(f"CodeSearchEvaluator: got primary_task {primary!r}, expected one of {list(self.tasks)}")
        super().__init__(
            lambda model: evaluate_code_search(model, self.tasks, batch_size=batch_size),
            [f"{task}_{score}" for task in self.tasks for score in ("mrr", *(f"recall@{k}" for k in RECALL_AT))],
            f"{primary}_mrr",
            name=name,
            kind="code_search",
            heading="Code Search",
        )


def _read_rows(path: Path, types: Mapping[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a jsonl file, each with where it stands."""
    for where, row in read_jsonl(path):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in types.items()):
            expected = ", ".join(f"{key} ({kind.__name__})" for key, kind in types.items())
            raise ValueError(f"{where}: got {str(row)[:80]}, expected {expected}")
        yield where, row
