"""The texts of rows that are shown: a file or a data set in, pairs of texts by row id out, read when they are asked for."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from gcbs_st.rows.columns import TextColumn, read_columns

Pair = tuple[str, str]
PLAIN_COLUMNS = (TextColumn("anchor"), TextColumn("positive"))


@dataclass(frozen=True)
class PairTexts:
    """Texts by row id.

    Attributes:
        rows: n.
        source: what they are of, for messages.
        read: (m,) ids in [0, n) -> m pairs of anchor and positive.
        columns: how training embeds anchors and positives.
    """

    rows: int
    source: str
    read: Callable[[np.ndarray], list[Pair]]
    columns: Sequence[TextColumn] = PLAIN_COLUMNS

    def as_dataset(self, rows: np.ndarray) -> Dataset:
        """Returns rows as a data set with the names of the columns.

        Args:
            rows: (m,) ids.
        """
        pairs = self.read(rows)
        names = [column.name for column in self.columns]
        return Dataset.from_dict({name: [pair[i] for pair in pairs] for i, name in enumerate(names)})


def texts_of_dataset(dataset: Dataset, columns: Sequence[TextColumn], source: str) -> PairTexts:
    """Returns the texts of a data set.

    Args:
        dataset: n rows.
        columns: of the anchors and the positives.
        source: for messages.
    """

    def read(rows: np.ndarray) -> list[Pair]:
        anchors, positives = read_columns(dataset, rows, [column.name for column in columns])
        return [(str(anchor), str(positive)) for anchor, positive in zip(anchors, positives, strict=True)]

    return PairTexts(len(dataset), source, read, columns)


def texts_of_file(file: Path) -> PairTexts:
    """Returns the texts of JSON lines, which are checked now and kept on disk.

    Args:
        file: each line an object with the strings `anchor` and `positive`; also with .gz.

    Returns:
        As many rows as there are lines.

    Raises:
        ValueError: a file that cannot be read, or a line that is no such object; the message names the line.
    """
    rows = sum(1 for _ in _pairs(file))

    def read(wanted: np.ndarray) -> list[Pair]:
        ids = set(wanted.tolist())
        found = {row: pair for row, pair in enumerate(_pairs(file)) if row in ids}
        return [found[row] for row in wanted.tolist()]

    return PairTexts(rows, str(file), read)


def _pairs(file: Path) -> Iterator[Pair]:
    number = 0
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                entry = json.loads(line)
                pair = (entry["anchor"], entry["positive"])
                if not all(isinstance(text, str) for text in pair):
                    raise TypeError("the texts are no strings")
                yield pair
    # EOFError and zlib.error: a .gz that was cut off or damaged.
    except (KeyError, TypeError, ValueError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{file}, line {number}: expected an object with the strings anchor and positive "
            f"({type(error).__name__}: {error})"
        ) from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or error})") from None
