"""Reads retrieval tasks in BEIR's form: queries, a corpus, and which documents answer which query.

Goes in: a folder of `NAME.{queries,corpus,qrels}.jsonl`, also `.jsonl.gz`. Comes out: a task for each name and split.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcbs_st.evaluation.jsonl import read_jsonl
from gcbs_st.evaluation.sts_tasks import SPLITS

PARTS = ("queries", "corpus", "qrels")
_FILE_NAME = re.compile(r"(?P<name>[^.].*)\.(?P<part>queries|corpus|qrels)\.jsonl(\.gz)?")


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, the documents that they are looked for in, and for each query the rows of the relevant ones.

    `relevant` holds for each query a mapping of document row to gain, above 0: 1 where relevance is yes or no.
    """

    name: str
    queries: list[str]
    documents: list[str]
    relevant: list[dict[int, float]]

    def __post_init__(self) -> None:
        if not self.queries or len(self.queries) != len(self.relevant):
            raise ValueError(
                f"retrieval {self.name}: got {len(self.queries)} queries and the relevant documents of "
                f"{len(self.relevant)}, expected as many, not none"
            )
        for query, gains in enumerate(self.relevant):
            rows = all(0 <= row < len(self.documents) for row in gains)
            if not gains or not rows or not all(0 < gain < math.inf for gain in gains.values()):
                raise ValueError(
                    f"retrieval {self.name}: got {gains} for query {query}, expected rows of {len(self.documents)} "
                    "documents, each with a gain above 0, not none"
                )


def load_retrieval_tasks(
    folder: str | Path, *, names: Sequence[str] | None = None, splits: Sequence[str] = ("test",)
) -> dict[str, RetrievalTask]:
    """Returns the retrieval tasks of a folder by name; splits other than test are named NAME-SPLIT.

    Queries have `_id` and `text`; documents `_id`, `text` and perhaps `title`, which is put before the text with a
    blank; qrels `query_id`, `corpus_id`, `score`, and perhaps `split`, without which they are the test. A score of 0 or
    less means not relevant. Queries without a relevant document in a split are no queries of it.

    Args:
        folder: with the files; `~` and environment variables are expanded.
        names: of the sets to read; None for all that the folder has.
        splits: of train, dev and test. A set that has none of them is left out, unless `names` asks for it.

    Returns:
        At least one task.

    Raises:
        FileNotFoundError: no such folder, or a set lacks one of its three files.
        ValueError: an unknown split, a name that the folder or the splits do not have, a malformed line, an id that
            stands twice or is unknown.
    """
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        raise ValueError(f"retrieval splits: got {splits!r}, expected a list of one or more of {', '.join(SPLITS)}")
    place = Path(os.path.expandvars(folder)).expanduser()
    advice = "expected a folder of NAME.queries.jsonl, NAME.corpus.jsonl and NAME.qrels.jsonl, each perhaps with .gz"
    if not place.is_dir():
        raise FileNotFoundError(f"retrieval: {place} is no folder; {advice}")
    files = _find_sets(place)
    wanted = list(files) if names is None else list(names)
    if missing := [name for name in wanted if name not in files]:
        raise ValueError(
            f"retrieval: {place} has no set {', '.join(missing)}, only {', '.join(files) or 'none'}; {advice}"
        )
    tasks: dict[str, RetrievalTask] = {}
    for name in wanted:
        if lacking := [part for part in PARTS if part not in files[name]]:
            raise FileNotFoundError(f"retrieval: {place} has no {name}.{lacking[0]}.jsonl; {advice}")
        found = _read_set(name, files[name], splits)
        if not found and names is not None:
            raise ValueError(f"retrieval: {place / name} has no relevant document in {', '.join(splits)}")
        tasks |= found
    if not tasks:
        raise ValueError(f"retrieval: {place} has no set with the split {' or '.join(splits)}; {advice}")
    return tasks


def _find_sets(place: Path) -> dict[str, dict[str, Path]]:
    """Name of a set -> part -> file."""
    sets: dict[str, dict[str, Path]] = {}
    for path in sorted(place.iterdir()):
        if match := _FILE_NAME.fullmatch(path.name):
            parts = sets.setdefault(match["name"], {})
            if match["part"] in parts:
                raise ValueError(f"retrieval: {parts[match['part']]} and {path} are of one set; remove one")
            parts[match["part"]] = path
    return sets


def _read_set(name: str, files: Mapping[str, Path], splits: Sequence[str]) -> dict[str, RetrievalTask]:
    queries, documents = (_read_texts(files[part]) for part in ("queries", "corpus"))
    row_of = {document_id: row for row, document_id in enumerate(documents)}
    by_split: dict[str, dict[str, dict[int, float]]] = {split: {} for split in splits}
    for where, row in read_jsonl(files["qrels"]):
        query, document, score = _read_judgement(where, row)
        if query not in queries or document not in row_of:
            raise ValueError(f"{where}: got query {query!r} and document {document!r}, expected ids of {name}'s files")
        split = row.get("split", "test")
        if split in by_split and score > 0:
            gains = by_split[split].setdefault(query, {})
            if row_of[document] in gains:
                raise ValueError(f"{where}: query {query!r} and document {document!r} stand twice in {split}")
            gains[row_of[document]] = score
    return {
        label: RetrievalTask(
            label, [queries[query] for query in gains], list(documents.values()), list(gains.values())
        )
        for split, gains in by_split.items()
        if gains
        for label in [name if split == "test" else f"{name}-{split}"]
    }


def _read_texts(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, row in read_jsonl(path):
        fields = row if isinstance(row, dict) else {}
        key, text, title = fields.get("_id"), fields.get("text"), fields.get("title") or ""
        if (
            isinstance(key, bool)
            or not isinstance(key, (str, int))
            or not (isinstance(text, str) and isinstance(title, str))
        ):
            raise ValueError(f"{where}: got {str(row)[:80]}, expected _id and text, and of a document perhaps title")
        if str(key) in texts:
            raise ValueError(f"{where}: the id {key!r} stands twice, expected each once")
        texts[str(key)] = f"{title} {text}".strip()
    if not texts:
        raise ValueError(f"{path}: got no row, expected one for each text")
    return texts


def _read_judgement(where: str, row: Any) -> tuple[str, str, float]:
    keys = ("query_id", "corpus_id", "score")
    if not isinstance(row, dict) or not all(key in row for key in keys):
        raise ValueError(f"{where}: got {str(row)[:80]}, expected the keys {', '.join(keys)}, and perhaps split")
    try:
        score = math.nan if isinstance(row["score"], bool) else float(row["score"])
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{where}: got score {row['score']!r}, expected a finite number")
    return str(row["query_id"]), str(row["corpus_id"]), score
