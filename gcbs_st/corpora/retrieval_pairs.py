"""Reads the training pairs of a retrieval set in BEIR's form: each query with each document that answers it.

Goes in: the path of a set without its endings, `FOLDER/NAME` for `FOLDER/NAME.{queries,corpus,qrels}.jsonl`, each perhaps
with .gz. Comes out: a `Dataset` of anchor (query), positive (document) and query_id, in the order of the qrels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, Features, Value

PARTS = ("queries", "corpus", "qrels")


def find_retrieval_set(path: Path) -> dict[str, Path] | None:
    """Returns the three files of a set by part, or None where there is none of that name.

    Raises a FileNotFoundError if only some of them are there.
    """
    files = {
        part: file
        for part in PARTS
        for ending in (".jsonl", ".jsonl.gz")
        if (file := path.with_name(f"{path.name}.{part}{ending}")).is_file()
    }
    if files and len(files) < len(PARTS):
        missing = next(part for part in PARTS if part not in files)
        raise FileNotFoundError(
            f"no file {path}.{missing}.jsonl or .jsonl.gz, but {', '.join(map(str, files.values()))}"
        )
    return files or None


def load_retrieval_pairs(files: dict[str, Path], split: str, read: Callable[[Path], Dataset]) -> Dataset:
    """Returns the pairs of one split of a set; qrels without a split are all of them `test`.

    Scores of 0 or less are no pairs. `read` turns a file into its rows. Raises a ValueError for a column that is
    missing, an id that a qrel names and no file has, or a split without a pair.
    """
    queries, documents, judged = (read(files[part]) for part in PARTS)
    for part, rows, columns in (
        ("queries", queries, ("_id", "text")),
        ("corpus", documents, ("_id", "text")),
        ("qrels", judged, ("query_id", "corpus_id", "score")),
    ):
        if lacking := [column for column in columns if column not in rows.column_names]:
            raise ValueError(
                f"{files[part]}: got the columns {rows.column_names}, expected {', '.join(lacking)} among them"
            )
    query_of = {str(key): text for key, text in zip(queries["_id"], queries["text"], strict=True)}
    titles = documents["title"] if "title" in documents.column_names else [None] * len(documents)
    document_of = {
        str(key): f"{title or ''} {text}".strip()
        for key, title, text in zip(documents["_id"], titles, documents["text"], strict=True)
    }
    splits = judged["split"] if "split" in judged.column_names else ["test"] * len(judged)
    pairs: list[dict[str, str]] = []
    for query, document, score, of_split in zip(
        judged["query_id"], judged["corpus_id"], judged["score"], splits, strict=True
    ):
        if of_split != split or float(score) <= 0:
            continue
        if str(query) not in query_of or str(document) not in document_of:
            raise ValueError(
                f"{files['qrels']}: got query {query!r} and document {document!r}, expected ids of the set"
            )
        pairs.append({
            "anchor": query_of[str(query)], "positive": document_of[str(document)], "query_id": str(query)
        })  # fmt: skip
    if not pairs:
        found = ", ".join(sorted(set(splits)))
        raise ValueError(f"got no pair in the split {split!r} of {files['qrels']}, only {found}")
    return Dataset.from_list(pairs, features=Features({name: Value("string") for name in pairs[0]}))
