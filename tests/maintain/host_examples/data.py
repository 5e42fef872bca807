"""Small local stand-ins of the hub's datasets, by name and configuration, with the columns and types of the real ones.

Row i of a split is about fact i, so tables that refer to each other by ids agree.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from host_examples.texts import TOPICS, Writer

# At 16 rows a batch, the cap of the caps, these are 25 batches.
ROWS = 400
HELD_OUT = 60
# Premises that are shared by two rows each; a multiple of the topics, so that both are of one topic.
SHARED = ROWS // 2
LISTED = 8
SYSTEMS_NEGATIVES = 50

# What makes one value of a column of a row's fact; a writer and the fact are given.
Maker = Callable[[Writer, int], Any]
Table = tuple[dict[str, Maker], Features | None]


def about(writer: Writer, fact: int) -> str:
    """A sentence about the row's fact."""
    return writer.about(fact)


def near(writer: Writer, fact: int) -> str:
    """A sentence of the same topic: what a hard negative is."""
    return writer.near(fact)


def passage(writer: Writer, fact: int) -> str:
    """Three sentences about the row's fact."""
    return writer.about(fact, sentences=3)


def premise(writer: Writer, fact: int) -> str:
    """A sentence that stands in two rows, as premises do."""
    return Writer(fact % SHARED).about(fact % SHARED)


def entailed(writer: Writer, fact: int) -> str:
    """A sentence about the fact of the premise."""
    return about(writer, fact % SHARED)


def several(make: Maker, count: int) -> Maker:
    """A list of values in one row."""
    return lambda writer, fact: [make(writer, fact) for _ in range(count)]


def columns(**makers: Maker) -> Table:
    """A table whose types are those of its values."""
    return makers, None


def scored(first: str, second: str) -> Table:
    """Pairs with a score of 0 to 1, of one fact where it is high."""

    def partner(writer: Writer, fact: int) -> str:
        return about(writer, fact) if _level(fact) > 2 else near(writer, fact)

    return {first: about, second: partner, "score": lambda writer, fact: _level(fact) / 5}, None


def labelled(first: str, second: str, labels: list[str], same: int) -> Table:
    """Pairs with a class, of one fact where it is class `same`."""

    def label(fact: int) -> int:
        return _level(fact) % len(labels)

    makers: dict[str, Maker] = {
        first: about,
        second: lambda writer, fact: about(writer, fact) if label(fact) == same else near(writer, fact),
        "label": lambda writer, fact: label(fact),
    }
    return makers, Features({first: Value("string"), second: Value("string"), "label": ClassLabel(names=labels)})


def own(cast: type) -> Maker:
    """The row's fact as an id."""
    return lambda writer, fact: cast(fact)


def other(cast: type) -> Maker:
    """The id of another fact."""
    return lambda writer, fact: cast(_other(writer, fact))


def _level(fact: int) -> int:
    """A number of 0 to 5 that has nothing to do with the topic."""
    return zlib.crc32(str(fact).encode()) % 6


def _other(writer: Writer, fact: int) -> int:
    return (fact + int(writer.rng.integers(1, ROWS))) % ROWS


def _ranked(writer: Writer, fact: int) -> list[int]:
    """The row's own passage and then others, half of them of its topic."""
    others = [(fact + step * (TOPICS if step % 2 else 1)) % ROWS for step in range(1, LISTED)]
    return [fact, *others]


def _falling(writer: Writer, fact: int) -> list[float]:
    return [float(score) for score in np.linspace(9.0, -3.0, LISTED)]


def _triplet_ids() -> Table:
    negatives = {f"negative_{number}": other(int) for number in range(1, SYSTEMS_NEGATIVES + 1)}
    return columns(query=own(int), positive=own(int), **negatives)


def _all_ids(writer: Writer, fact: int) -> list[int]:
    return list(range(ROWS))


def _all_scores(writer: Writer, fact: int) -> list[float]:
    """A teacher's scores of all passages: high for the row's own, low for all others."""
    return [9.0 if other == fact else -2.0 - (other % 7) / 10 for other in range(ROWS)]


def _picture(writer: Writer, fact: int) -> Any:
    """A small picture in the colour of the topic, with a pattern of its own."""
    from PIL import Image

    colour = np.random.default_rng(fact % TOPICS).integers(0, 200, size=3)
    noise = np.random.default_rng(fact).integers(0, 56, size=(32, 32, 3))
    return Image.fromarray((colour + noise).astype(np.uint8))


def _foreign(writer: Writer, fact: int) -> str:
    return Writer(fact, foreign="x").about(fact)


_NLI = ["entailment", "neutral", "contradiction"]
_TREC_COARSE, _TREC_FINE = 6, TOPICS
_TREC = Features({
    "text": Value("string"),
    "coarse_label": ClassLabel(num_classes=_TREC_COARSE),
    "fine_label": ClassLabel(num_classes=_TREC_FINE),
})  # fmt: skip

ST = "sentence-transformers"
TABLES: dict[tuple[str, str | None], Table] = {
    (f"{ST}/all-nli", "triplet"): columns(anchor=premise, positive=entailed, negative=near),
    (f"{ST}/all-nli", "pair-score"): scored("sentence1", "sentence2"),
    (f"{ST}/all-nli", "pair-class"): labelled("premise", "hypothesis", _NLI, same=0),
    (f"{ST}/stsb", None): scored("sentence1", "sentence2"),
    (f"{ST}/quora-duplicates", "triplet"): columns(anchor=about, positive=about, negative=near),
    (f"{ST}/quora-duplicates", "pair"): columns(anchor=about, positive=about),
    (f"{ST}/quora-duplicates", "pair-class"): labelled("sentence1", "sentence2", ["different", "duplicate"], same=1),
    (f"{ST}/quora-duplicates-mining", "questions"): columns(qid=own(str), question=about),
    (f"{ST}/quora-duplicates-mining", "duplicates"): columns(qid1=own(str), qid2=other(str)),
    ("BeIR/quora", "corpus"): columns(_id=own(str), title=about, text=about),
    ("BeIR/quora", "queries"): columns(_id=own(str), title=about, text=about),
    ("BeIR/quora-qrels", None): columns(**{"query-id": own(int), "corpus-id": own(int), "score": own(int)}),
    (f"{ST}/gooaq", None): columns(question=about, answer=passage),
    (f"{ST}/codesearchnet", "pair"): columns(comment=about, code=passage),
    (f"{ST}/natural-questions", None): columns(query=about, answer=passage),
    (f"{ST}/msmarco-bm25", "triplet"): columns(query=about, positive=passage, negative=near),
    (f"{ST}/msmarco", "corpus"): columns(passage_id=own(str), passage=passage),
    (f"{ST}/msmarco", "queries"): columns(query_id=own(str), query=about),
    (f"{ST}/msmarco", "triplets"): columns(query_id=own(str), positive_id=own(str), negative_id=other(str)),
    (f"{ST}/msmarco", "bert-ensemble-margin-mse"): columns(
        score=lambda writer, fact: float(_level(fact)),
        query_id=own(str), positive_id=own(str), negative_id=other(str),
    ),
    (f"{ST}/msmarco-corpus", "passage"): columns(pid=own(int), text=passage),
    (f"{ST}/msmarco-corpus", "query"): columns(qid=own(int), text=about),
    (f"{ST}/msmarco-scores-ms-marco-MiniLM-L6-v2", "list"): columns(
        query_id=own(int), corpus_id=_all_ids, score=_all_scores
    ),
    ("lightonai/ms-marco-en-bge-gemma", "train"): columns(
        query_id=own(int), document_ids=_ranked, scores=_falling
    ),
    ("lightonai/ms-marco-en-bge-gemma", "queries"): columns(query_id=own(int), text=about),
    ("lightonai/ms-marco-en-bge-gemma", "documents"): columns(document_id=own(int), text=passage),
    ("tomaarsen/msmarco-Qwen3-Reranker-0.6B", None): columns(
        query=about, positive=passage, negative=near, score=lambda writer, fact: [9.0, float(_level(fact))]
    ),
    ("tomaarsen/miriad-4.4M-split", None): columns(question=about, passage_text=passage),
    ("omkar334/trec", None): (
        {
            "text": about,
            "coarse_label": lambda writer, fact: fact % _TREC_COARSE,
            "fine_label": lambda writer, fact: fact % _TREC_FINE,
        },
        _TREC,
    ),
    (f"{ST}/wikipedia-sections", "triplet"): columns(anchor=about, positive=about, negative=near),
    (f"{ST}/sentence-compression", None): columns(text=about, simplified=about),
    (f"{ST}/simple-wiki", None): columns(text=about, simplified=about),
    (f"{ST}/altlex", None): columns(text=about, simplified=about),
    (f"{ST}/coco-captions", None): columns(caption1=about, caption2=about),
    (f"{ST}/flickr30k-captions", None): columns(caption1=about, caption2=about),
    (f"{ST}/yahoo-answers", "title-question-answer-pair"): columns(question=about, answer=passage),
    (f"{ST}/stackexchange-duplicates", "title-title-pair"): columns(title1=about, title2=about),
    (f"{ST}/wikipedia-en-sentences", None): columns(sentence=about),
    (f"{ST}/wiki1m-for-simcse", None): columns(text=about),
    (f"{ST}/askubuntu-questions", None): columns(text=about),
    (f"{ST}/askubuntu", None): columns(query=about, positive=several(about, 2), negative=several(near, 4)),
    ("jxie/flickr8k", None): ({"image": _picture, **{f"caption_{number}": about for number in range(5)}}, None),
}  # fmt: skip
# Datasets with many configurations that have the same columns.
FAMILIES: list[tuple[re.Pattern[str], Table]] = [
    (re.compile(rf"{ST}/parallel-sentences-\w+ "), columns(english=about, non_english=_foreign)),
    (re.compile(r"mteb/sts17-crosslingual-sts "), scored("sentence1", "sentence2")),
    (re.compile(rf"{ST}/msmarco-.* triplet-50-ids"), _triplet_ids()),
]
SPLITS = {"jxie/flickr8k": ("train", "validation"), "omkar334/trec": ("train", "test")}
DEFAULT_SPLITS = ("train", "eval", "test")


def find_table(name: str, config: str | None) -> Table:
    """Returns the stand-in of a dataset.

    Raises:
        ConnectionError: there is none, as without a network.
    """
    if (name, config) in TABLES:
        return TABLES[name, config]
    for pattern, table in FAMILIES:
        if pattern.match(f"{name} {config or ''}"):
            return table
    raise ConnectionError(f"no stand-in for the dataset {name!r}{f', {config}' if config else ''}")


def make_split(name: str, config: str | None, split: str) -> Dataset:
    """Returns the rows of a split, the same for the same names."""
    makers, features = find_table(name, config)
    writer = Writer(zlib.crc32(f"{name} {config} {split}".encode()))
    # Tables that others refer to are whole in any split; held-out ones are about facts of their own.
    whole = split == "train" or any(column.endswith("id") for column in makers)
    facts = range(ROWS) if whole else range(1000, 1000 + HELD_OUT)
    rows = {column: [make(writer, fact) for fact in facts] for column, make in makers.items()}
    return Dataset.from_dict(rows, features=features)


def load_dataset(
    path: str, name: str | None = None, *_: Any, split: str | None = None, streaming: bool = False, **others: Any
) -> Any:
    """Stands for `datasets.load_dataset`.

    Args:
        path: the dataset's name on the hub, or the format of files that are there.
        name: of the configuration.
        split: a name, perhaps with a slice behind it as `train[:1000]`; None for all splits.
        streaming: whether a split is a stream.
        others: arguments that make no difference, but for files.

    Returns:
        A `Dataset`, a stream, or a `DatasetDict` of all splits.
    """
    if "data_files" in others:
        return datasets.load.load_dataset(path, name, split=split, streaming=streaming, **others)
    if split is None:
        return DatasetDict({one: make_split(path, name, one) for one in SPLITS.get(path, DEFAULT_SPLITS)})
    wanted = re.fullmatch(r"(\w+)(?:\[(-?\d*):(-?\d*)\])?", split)
    if wanted is None:
        raise ValueError(f"split: got {split!r}, expected a name, perhaps with a slice of rows")
    rows = make_split(path, name, wanted[1])
    bounds = [int(bound) if bound else None for bound in (wanted[2], wanted[3])]
    rows = rows.select(range(*slice(*bounds).indices(len(rows))))
    return rows.to_iterable_dataset() if streaming else rows
