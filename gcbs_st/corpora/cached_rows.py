"""What takes long to read and seldom changes: a key in, the rows that were made for it out, from disk where possible.

A cache file is named by a hash of its key, written under a temporary name and renamed. One that is damaged is
made anew, and where none can be written the rows are made each time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Rows = list[tuple[str, ...]]


def cached_rows(kind: str, key: Any, width: int, make: Callable[[], Rows]) -> Rows:
    """Return the rows that belong to a key.

    Args:
        kind: begins the name of the file.
        key: of JSON's types; all that the rows depend on.
        width: texts a row.
        make: called if there is no usable file of the key.

    Returns:
        The rows, in the order in which they were made.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    file = Path(folder) / "gcbs_st" / f"{kind}-{digest}.json"
    rows = _read(file, width)
    if rows is None:
        rows = make()
        _write(file, rows)
    return rows


def _read(file: Path, width: int) -> Rows | None:
    """Return the rows of a cache file, or None if there is no such file or it is damaged."""
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


def _write(file: Path, rows: Rows) -> None:
    """Write the rows for the next run; without a writable cache folder they are made anew each time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete, so that another process never reads half a file. Escapes keep lone surrogates whole.
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as temporary:
            json.dump(rows, temporary)
        os.replace(temporary.name, file)
    except OSError as error:
        logger.info("rows are not cached: %s", error)
