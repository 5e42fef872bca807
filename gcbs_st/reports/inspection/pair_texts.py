"""The corpus of a run, or a file, in, pairs of texts by row id out, read when they are needed."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from gcbs_st.config import ExperimentConfig
from gcbs_st.experiments.data import load_trained_rows
from gcbs_st.records.run_folder import run_settings
from gcbs_st.rows.columns import TextColumn, read_columns, text_columns

Pair = tuple[str, str]
PAIR = ("anchor", "positive")  # what the two are called


@dataclass(frozen=True)
class PairTexts:
    """Texts by row id."""

    rows: int
    source: str  # for messages
    read: Callable[[np.ndarray], list[Pair]]  # (m,) ids in [0, rows) -> m pairs of anchor and positive
    # How training embeds anchors and positives.
    columns: Sequence[TextColumn] = (TextColumn("anchor"), TextColumn("positive"))

    def as_dataset(self, row_ids: np.ndarray) -> Dataset:
        """Returns m rows as a dataset with the names of the columns."""
        pairs = self.read(row_ids)
        return Dataset.from_dict({column.name: [pair[i] for pair in pairs] for i, column in enumerate(self.columns)})


def texts_of_file(file: Path, columns: Sequence[str] = PAIR) -> PairTexts:
    """Returns the texts of JSON lines (also .gz), which stay on disk: objects with two strings, of the names in `columns`.

    Raises a ValueError that names the line if it is not such an object, or if the file cannot be read.
    """
    rows = sum(1 for _ in _pairs(file, columns))

    def read(wanted: np.ndarray) -> list[Pair]:
        ids = set(wanted.tolist())
        found = {row: pair for row, pair in enumerate(_pairs(file, columns)) if row in ids}
        return [found[row] for row in wanted.tolist()]

    return PairTexts(rows, str(file), read)


def read_run_texts(folder: Path, config: ExperimentConfig, recorded: str) -> PairTexts:
    """Returns the texts that a run was trained on, in the order that plans count them in, from its corpus.

    Raises a ValueError if the corpus no longer has the `recorded` hash.
    """
    advice = "Train again, or give the texts of then with --texts."
    _, trained = load_trained_rows(folder, config, recorded, advice=advice)
    settings = run_settings(config)
    planned = settings.get("planner_columns")
    planned = json.loads(planned) if isinstance(planned, str) else planned
    columns = text_columns(
        trained,
        prompts=settings.get("prompts"),
        router_mapping=settings.get("router_mapping"),
        names=planned if planned and len(planned) == 2 else None,  # the page is of pairs
    )

    def read(row_ids: np.ndarray) -> list[Pair]:
        anchors, positives = read_columns(trained, row_ids, [column.name for column in columns])
        return [(str(anchor), str(positive)) for anchor, positive in zip(anchors, positives, strict=True)]

    return PairTexts(len(trained), config.corpus.source, read, columns)


def _pairs(file: Path, columns: Sequence[str]) -> Iterator[Pair]:
    number = 0
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                entry = json.loads(line)
                pair = (entry[columns[0]], entry[columns[1]])
                if not all(isinstance(text, str) for text in pair):
                    raise TypeError("the texts are no strings")
                yield pair
    # EOFError and zlib.error: a .gz that was cut off or damaged.
    except (KeyError, TypeError, ValueError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{file}, line {number}: expected an object with the strings {columns[0]} and {columns[1]} "
            f"({type(error).__name__}: {error})"
        ) from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or error})") from None
