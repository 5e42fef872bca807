"""Keeps on disk, in a file named by a hash of their key, rows that take long to make and seldom change.

A damaged file is made anew, and where none can be written the rows are made each time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gcbs_st.files import cache_folder, write_text

logger = logging.getLogger(__name__)

Rows = list[tuple[str, ...]]


def cached_rows(kind: str, key: Any, width: int, make: Callable[[], Rows]) -> Rows:
    """Returns the rows that belong to a key, in the order in which `make` returned them.

    The key, of JSON's types, holds all that the rows depend on; `kind` begins the file's name, and `width` is the
    number of texts per row.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    file = cache_folder() / f"{kind}-{digest}.json"
    if (rows := _read(file, width)) is None:
        rows = make()
        try:
            write_text(file, json.dumps(rows))  # its escapes keep lone surrogates whole
        except OSError as error:
            logger.info("rows are not cached: %s", error)
    return rows


def _read(file: Path, width: int) -> Rows | None:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == width for row in rows):
            raise ValueError(f"not a list of rows of {width}")
        if not all(isinstance(text, str) for row in rows for text in row):
            raise ValueError("not rows of strings")
        return [tuple(row) for row in rows]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("ignored the cache file %s: %s", file, error)
        return None
