"""Scores a model on retrieval: nDCG@10, MRR@10 and recall@100 of each query's relevant documents in the whole corpus.

The measures are trec_eval's, averaged over the orders of documents that score alike: a model that maps all texts to one
point scores as chance does. The host's `InformationRetrievalEvaluator` orders those as they come, and knows no grades.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from gcbs_st.evaluation.evaluator import ScoreEvaluator, encode_distinct
from gcbs_st.evaluation.ranking import compare_with_gold, recall_at
from gcbs_st.evaluation.retrieval_tasks import RetrievalTask

NDCG_AT, MRR_AT, RECALL_AT = 10, 10, 100
SCORES = (f"ndcg@{NDCG_AT}", f"mrr@{MRR_AT}", f"recall@{RECALL_AT}")
AVERAGE = "retrieval_avg"


def evaluate_retrieval(
    model: SentenceTransformer, tasks: Mapping[str, RetrievalTask], *, batch_size: int = 128
) -> dict[str, float]:
    """Returns `{task}_ndcg@10`, `{task}_mrr@10` and `{task}_recall@100`, in [0, 100], and `retrieval_avg`.

    The last is the mean nDCG@10 of the tests, if there are any. Queries and documents are encoded as the model encodes
    each (`encode_query`, `encode_document`, with its prompts) and compared by its similarity, cosine or dot product.
    Modes and global random numbers are left as they were. Documents of equal embeddings tie. Cost: O(p n d) time for p
    pairs of query and relevant document, n documents and d dimensions. Raises a ValueError if there are no tasks, an
    embedding is NaN or infinite, or the model compares by a distance.
    """
    if not tasks:
        raise ValueError("evaluate_retrieval: got no tasks, expected at least one RetrievalTask")
    similarity = model.similarity_fn_name
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"evaluate_retrieval: the model compares by {similarity}, expected cosine or dot")
    scores: dict[str, float] = {}
    documents: tuple[list[str], np.ndarray] | None = None
    normalize = similarity == "cosine"

    def embed(texts: list[str], encode: Callable[..., Any]) -> np.ndarray:
        (rows,), distinct = encode_distinct(model, [texts], batch_size, encode=encode, normalize=normalize)
        embeddings: np.ndarray = distinct[rows]
        return embeddings

    for name, task in tasks.items():
        if documents is None or documents[0] != task.documents:  # splits of one set share their corpus
            documents = task.documents, embed(task.documents, model.encode_document)
        queries = embed(task.queries, model.encode_query)
        scores |= {f"{name}_{key}": value for key, value in score_ranking(queries, documents[1], task).items()}
    tests = [scores[f"{name}_{SCORES[0]}"] for name in _tests(tasks)]
    return {**scores, AVERAGE: statistics.fmean(tests)} if tests else scores


def _tests(names: Iterable[str]) -> list[str]:
    """The names of the tasks that the average is of."""
    return [name for name in names if not name.endswith(("-dev", "-train"))]


def score_ranking(queries: np.ndarray, documents: np.ndarray, task: RetrievalTask) -> dict[str, float]:
    """Returns `ndcg@10`, `mrr@10` and `recall@100` x 100 of (q, d) queries over (n, d) documents, by dot product."""
    pairs = [(query, row) for query, gains in enumerate(task.relevant) for row in gains]
    query_of, row_of = np.array(pairs, dtype=np.int64).T
    gains = np.array([gain for gains in task.relevant for gain in gains.values()])
    closer, tied = compare_with_gold(queries[query_of], documents, row_of)
    wanted = {name: np.empty(len(task.queries)) for name in SCORES}
    ends = np.searchsorted(query_of, np.arange(len(task.queries) + 1))
    for query, (start, end) in enumerate(itertools.pairwise(ends)):
        mine = slice(int(start), int(end))
        wanted[SCORES[0]][query] = 100 * _ndcg(closer[mine], tied[mine], gains[mine])
        wanted[SCORES[1]][query] = 100 * _reciprocal_rank(closer[mine], tied[mine])
        wanted[SCORES[2]][query] = recall_at(RECALL_AT, closer[mine], tied[mine])
    return {name: float(values.mean()) for name, values in wanted.items()}


def _ndcg(closer: np.ndarray, tied: np.ndarray, gains: np.ndarray) -> float:
    """The expectation over the orders of ties (McSherry and Najork, ECIR 2008)."""
    # A document of a tie of t + 1, behind c closer ones, stands at each of the ranks c + 1 to c + t + 1 equally often.
    discounts = 1 / np.log2(np.arange(NDCG_AT) + 2)
    sums = np.concatenate([[0.0], np.cumsum(discounts)])
    first, last = np.minimum(closer, NDCG_AT), np.minimum(closer + tied + 1, NDCG_AT)
    found = float((gains * (sums[last] - sums[first]) / (tied + 1)).sum())
    return found / float((np.sort(gains)[::-1][:NDCG_AT] * discounts[: len(gains)]).sum())


def _reciprocal_rank(closer: np.ndarray, tied: np.ndarray) -> float:
    """The expectation of 1 / rank of the first relevant document: one of r in a tie of t + 1 behind c closer ones."""
    ahead, size = int(closer.min()), int(tied[closer.argmin()]) + 1
    relevant = int(np.count_nonzero(closer == ahead))
    return math.fsum(
        # The first of the r stands at place `at` of the tie: the other r - 1 are among the places behind it.
        math.comb(size - at, relevant - 1) / math.comb(size, relevant) / (ahead + at)
        for at in range(1, min(size - relevant + 1, MRR_AT - ahead) + 1)
    )


class RetrievalEvaluator(ScoreEvaluator):
    """Evaluator for the trainer that scores retrieval: `{name}_{task}_ndcg@10`, MRR@10 and recall@100, x 100.

    `primary`, a score such as `wikiqa-dev_ndcg@10`, chooses the best checkpoint; by default the nDCG of the first task.
    Raises a ValueError if there is no such score.
    """

    def __init__(
        self,
        tasks: Mapping[str, RetrievalTask],
        *,
        name: str = "retrieval",
        batch_size: int = 128,
        primary: str | None = None,
    ) -> None:
        self.tasks = dict(tasks)
        scored = [f"{task}_{score}" for task in self.tasks for score in SCORES]
        scored += [AVERAGE] if _tests(self.tasks) else []
        chosen = next(iter(scored), None) if primary is None else primary
        if chosen not in scored:
            raise ValueError(f"RetrievalEvaluator: got primary {primary!r}, expected one of {scored}")
        super().__init__(
            lambda model: evaluate_retrieval(model, self.tasks, batch_size=batch_size),
            scored,
            chosen,
            name=name,
            kind="retrieval",
            heading="Retrieval",
        )
