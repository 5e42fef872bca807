"""Score a model on code search: how high each query ranks the function it looks for, among all functions.

In: a sentence-transformers model and tasks of queries and functions. Out: plain floats, MRR and recall x 100.
Why: papers report the mean reciprocal rank over a whole pool of functions, of thousands and not of the thousand
distractors that some evaluations draw.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from gcbs_st.evaluation.evaluator import ScoreEvaluator, encode_distinct
from gcbs_st.evaluation.ranking import compare_with_gold, mean_reciprocal_rank, recall_at

RECALL_AT = (1, 10)
COSQA_FUNCTIONS, COSQA_QUERIES = "cosqa_codes.jsonl.gz", "cosqa_dev.jsonl"


@dataclass(frozen=True)
class CodeSearchTask:
    """Queries, functions, and which function each query looks for.

    Attributes:
        name: of the task.
        queries: q texts.
        functions: n texts, each once.
        gold: for each query the row of its function.

    Raises:
        ValueError: no query, a query without its function, or a function that stands twice.
    """

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
            raise ValueError(
                f"code search {self.name}: {repeated} functions stand twice, expected each once; drop them"
            )

    def facts(self) -> dict[str, Any]:
        """Return what a record holds of the task: numbers of queries and functions, and a hash of all of it."""
        content = json.dumps([self.queries, self.functions, self.gold]).encode()
        digest = hashlib.sha256(content).hexdigest()[:16]
        return {"queries": len(self.queries), "functions": len(self.functions), "hash": digest}


def task_of_pairs(
    name: str, queries: Sequence[str], functions: Sequence[str], *, others: Sequence[str] = ()
) -> CodeSearchTask:
    """Return the task of finding for each query its function, among all functions and some others.

    Args:
        name: of the task.
        queries: q texts.
        functions: q texts; equal ones are one function of the pool.
        others: Functions that no query looks for; those that are in `functions` count once.

    Returns:
        The task.

    Raises:
        ValueError: Queries and functions are none or not as many.
    """
    if len(queries) != len(functions):
        raise ValueError(
            f"code search {name}: got {len(queries)} queries and {len(functions)} functions, expected as many"
        )
    row_of = {text: row for row, text in enumerate(dict.fromkeys([*functions, *others]))}
    return CodeSearchTask(name, list(queries), list(row_of), [row_of[function] for function in functions])


def load_cosqa(folder: str | Path) -> CodeSearchTask:
    """Return CoSQA's dev queries (Huang et al., ACL 2021, arXiv 2105.13239) over the functions of its retrieval corpus.

    Args:
        folder: holds `cosqa_codes.jsonl.gz` with `id` and `code` (6,267 functions), and `cosqa_dev.jsonl` with
            `query` and `gold_id` (500 queries). `~` and environment variables are expanded.

    Returns:
        The task `CoSQA-dev`. A text that stands under several ids is one function.

    Raises:
        FileNotFoundError: One of the files is not there.
        ValueError: A row that is not as expected, a repeated id, or a query whose function is not there.
    """
    place = Path(os.path.expandvars(folder)).expanduser()
    for file in (COSQA_FUNCTIONS, COSQA_QUERIES):
        if not (place / file).is_file():
            raise FileNotFoundError(
                f"CoSQA: no file {place / file}; expected a folder of {COSQA_FUNCTIONS} and {COSQA_QUERIES}"
            )
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
    """Return MRR, recall@1 and recall@10 of each task, x 100, over all of its functions.

    Each distinct text of a task is encoded once, in evaluation mode and with the model's default prompt. The model's
    training mode and the global random numbers are left as they were.

    Args:
        model: The model to score.
        tasks: Tasks by name.
        batch_size: Texts a forward pass.

    Returns:
        ``{task}_mrr``, ``{task}_recall@1`` and ``{task}_recall@10`` of each task, in [0, 100].

    Raises:
        ValueError: There are no tasks, or an embedding is NaN or infinite.
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
    """Evaluator for the trainer that scores code search: ``{name}_{task}_mrr`` and recall of each task, x 100.

    The host's `InformationRetrievalEvaluator` knows MRR@k only: for the MRR of papers k would be the whole pool, of
    which it then keeps a sorted list a query. `host_evaluator` gives it for its other metrics.

    Args:
        tasks: Tasks by name.
        name: Prefix of the metrics and part of the CSV file's name.
        batch_size: Texts a forward pass.
        primary_task: Task whose MRR chooses the best checkpoint; the first one by default.

    Raises:
        ValueError: There are no tasks, or the primary task is not among them.
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


def host_evaluator(task: CodeSearchTask, **options: Any) -> InformationRetrievalEvaluator:
    """Return the host's evaluator of a task, for accuracy@k, recall@k, NDCG@k, MAP@k and MRR@k.

    Args:
        task: Queries and functions.
        options: Of `InformationRetrievalEvaluator`, such as `batch_size`.

    Returns:
        With accuracy and recall at 1 and 10 and MRR@10, unless options say otherwise.
    """
    defaults = {"accuracy_at_k": list(RECALL_AT), "precision_recall_at_k": list(RECALL_AT), "mrr_at_k": [10]}
    return InformationRetrievalEvaluator(
        {f"q{row}": text for row, text in enumerate(task.queries)},
        {f"f{row}": text for row, text in enumerate(task.functions)},
        {f"q{row}": {f"f{gold}"} for row, gold in enumerate(task.gold)},
        name=task.name,
        **{**defaults, **options},
    )


def _read_rows(path: Path, types: Mapping[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a jsonl file, each with where it stands."""
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                where = f"{path}, line {number}"
                if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in types.items()):
                    expected = ", ".join(f"{key} ({kind.__name__})" for key, kind in types.items())
                    raise ValueError(f"{where}: got {str(row)[:80]}, expected {expected}")
                yield where, row
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: bad JSON ({error}), expected one object a line") from error
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}, after line {number}: unreadable ({error}), expected UTF-8 text") from error
