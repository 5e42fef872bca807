"""Finds the installed Python distributions, and reads their `.py` files on all cores, without importing them."""

from __future__ import annotations

import ast
import importlib.metadata
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import joblib

logger = logging.getLogger(__name__)

# Tests do not say what a function does, vendored packages repeat other distributions, and scripts are outside (..).
SKIPPED_FOLDERS = frozenset(
    ".. test tests testing _testing vendor _vendor vendored _vendored extern _extern externals third_party".split()
)
SKIPPED_FILE = re.compile(r"test_.*|.*_test|conftest")

# Files that a process reads at a time: enough that handing them over takes no time, few enough that all finish together.
FILES_AT_A_TIME = 50
# With fewer files in all, other processes would take longer to start than the files to read.
FILES_WORTH_PROCESSES = 500

Pairs = set[tuple[str, str]]


def find_distributions(
    names: Sequence[str] | None, path: Sequence[str] | None = None
) -> dict[str, importlib.metadata.Distribution]:
    """Returns normalised name -> installed distribution, sorted by name, without this package.

    `names` are the wanted ones in any spelling, None for all; `path` has the folders to look in, None for `sys.path`.
    Raises a ValueError if a wanted one is not installed.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions(path=list(sys.path if path is None else path)):
        if name := distribution.metadata["Name"]:  # a half-removed distribution has none
            found.setdefault(_normalised(name), distribution)  # the first on the path is the one that is imported
    found.pop("gcbs-st", None)
    wanted = sorted(found) if names is None else sorted({_normalised(name) for name in names})
    if unknown := [name for name in wanted if name not in found]:
        raise ValueError(f"got distributions {unknown} that are not installed; expected some of {sorted(found)}")
    return {name: found[name] for name in wanted}


def python_files(distributions: Iterable[importlib.metadata.Distribution]) -> Iterator[Path]:
    """Yields the `.py` files to read, without tests and vendored packages; their order depends only on their names."""
    for distribution in distributions:
        for file in sorted(distribution.files or []):
            wanted = file.suffix == ".py" and not SKIPPED_FILE.fullmatch(file.stem)
            if wanted and SKIPPED_FOLDERS.isdisjoint(file.parts):
                yield Path(str(distribution.locate_file(file)))


def parse_files(files: Iterable[Path], parse: Callable[[str], Iterable[tuple[str, str]]]) -> Pairs:
    """Returns the distinct pairs that `parse`, a function of a module, finds in the texts of all readable files."""
    paths = list(files)
    parts = [paths[start : start + FILES_AT_A_TIME] for start in range(0, len(paths), FILES_AT_A_TIME)]
    jobs = joblib.cpu_count() if len(paths) >= FILES_WORTH_PROCESSES else 1
    # Its processes neither are forked from one with threads nor import the user's script anew.
    found = joblib.Parallel(n_jobs=jobs)(joblib.delayed(_parse_part)(part, parse) for part in parts)
    return set().union(*found)


def parse_source(source: str) -> ast.Module | None:
    """Returns the syntax tree of a source text, None if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _parse_part(files: Sequence[Path], parse: Callable[[str], Iterable[tuple[str, str]]]) -> Pairs:
    pairs: Pairs = set()
    for file in files:
        try:
            pairs.update(parse(file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            logger.debug("skipped %s: %s", file, error)
    return pairs


def _normalised(name: str) -> str:
    """A distribution's name as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()
