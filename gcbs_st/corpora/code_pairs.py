"""Code-search pairs from installed Python distributions: a function's summary, and the function without its docstring.

The filters are those of CodeSearchNet (Husain et al., arXiv 1909.09436, section 2): a summary of three words or
more, a function of three lines or more, no tests, no constructors and other special methods, no near-duplicates; and
of CodeXGLUE: English, without links and markup. Generated code is left out as well.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import Distribution

import numpy as np

from gcbs_st.corpora.cached_rows import Rows, cached_rows
from gcbs_st.corpora.docstring_pairs import summary_of_docstring
from gcbs_st.corpora.installed import find_distributions, parse_files, parse_source, python_files
from gcbs_st.corpora.near_duplicates import near_duplicate_pairs, without_later

logger = logging.getLogger(__name__)

SPLITS = ("test", "dev", "train")
# Of 100 parts of the hash of a distribution's name: below 15 test, below 25 dev, the rest train. The salt was chosen by
# counts alone: beside torch, transformers and scipy the three parts are 75, 10 and 15 of 100 and each of many packages.
SALT = "code-24"
TEST_PARTS, DEV_PARTS = 15, 25

# Parts of the caches' keys: raise them with every change below, or to a summary's, that changes the pairs.
PARSING_VERSION = 1
SELECTION_VERSION = 1

LEAST_LINES = 3  # of a function without its docstring
MOST_LINES = 200  # longer ones are tables and command lines more often than something to be searched for
NEAR_DUPLICATE = 0.8  # share of common words; that of Allamanis (Onward! 2019), whose tool CodeSearchNet used

FUNCTION = re.compile(r"^(?P<indent>[ \t]*)(?:async[ ]+)?def[ ]+(?P<name>\w+)", re.MULTILINE)
SKIPPED_NAME = re.compile(r".*test.*|__\w+__", re.IGNORECASE)
GENERATED_FILE = re.compile(r".*_pb2(_grpc)?|_?version|.*_generated|generated_.*")
GENERATED = re.compile(r"(?i)auto(?:matically)?[- ]?generated|generated (?:by|from)|do not (?:edit|modify)|@generated")
GENERATED_WITHIN = 2000  # characters: after a licence

Pairs = list[tuple[str, str]]


def load_code_pairs(
    distributions: Sequence[str] | None = None, *, distributions_path: Sequence[str] | None = None
) -> dict[str, Pairs]:
    """Returns the (summary, function) pairs of each split, sorted by distribution, summary and function.

    Each text stands once on its side, in all splits together, and so do near-duplicates of it. Of two distributions
    that hold the same, test keeps it before dev, and dev before train: so what test and dev hold does not depend on
    the training part. The arguments are those of `gcbs_st.corpora.installed.find_distributions`.
    """
    chosen = find_distributions(distributions, distributions_path)
    versions = [(name, distribution.version) for name, distribution in chosen.items()]

    def select() -> Rows:
        rows = []
        for name, distribution in chosen.items():
            key = [PARSING_VERSION, sys.version_info[:2], name, distribution.version]
            parsed = cached_rows(f"functions-{name}", key, 2, partial(_parse, distribution))
            rows += [(split_of(name), name, *pair) for pair in parsed]
        kept = unique_rows(rows)
        logger.info("found %d code pairs", len(kept))
        return kept

    key = [PARSING_VERSION, SELECTION_VERSION, SALT, TEST_PARTS, DEV_PARTS, sys.version_info[:2], versions]
    splits: dict[str, Pairs] = {split: [] for split in SPLITS}
    for split, _, summary, function in cached_rows("code", key, 4, select):
        splits[split].append((summary, function))
    return splits


def split_of(distribution: str) -> str:
    """Returns the split of a distribution by its normalised name, whatever else is installed."""
    part = int.from_bytes(hashlib.sha256(f"{SALT}:{distribution}".encode()).digest()[:8]) % 100
    return "test" if part < TEST_PARTS else "dev" if part < DEV_PARTS else "train"


def unique_rows(rows: Sequence[tuple[str, ...]]) -> Rows:
    """Returns the rows without those whose summary or function is that of an earlier one, or nearly.

    Rows are (split, distribution, summary, function); they return in the order of `SPLITS`, then of the other fields.
    """
    rows = sorted(set(rows), key=lambda row: (SPLITS.index(row[0]), *row[1:]))
    alike = [near_duplicate_pairs([row[side] for row in rows], NEAR_DUPLICATE) for side in (2, 3)]
    stays = without_later(len(rows), np.concatenate(alike))
    return [row for row, stay in zip(rows, stays, strict=True) if stay]


def pairs_of_source(source: str) -> Iterator[tuple[str, str]]:
    """Yields (summary, function without its docstring) of each function of a source text that passes the filters.

    Parsing whole files would take minutes, so only the functions are parsed whose docstring begins with a summary.
    A function whose end cannot be told from the indentation, as with a string that goes on further left, is left
    out: what was cut off does not parse.
    """
    if GENERATED.search(source, 0, GENERATED_WITHIN):
        return
    headers = list(FUNCTION.finditer(source))
    ends = [*(header.start() for header in headers[1:]), len(source)]
    for header, end in zip(headers, ends, strict=False):
        if SKIPPED_NAME.fullmatch(header["name"]):
            continue
        # A guess, so that few texts have to be looked at; the parser decides below what is a docstring.
        starts = [at for quotes in ('"""', "'''") if (at := source.find(quotes, header.end(), end)) > 0]
        start = min(starts, default=-1)
        if start < 0 or source[header.end() : start].rstrip("rRuU").rstrip()[-1:] != ":":
            continue
        closing = source.find(source[start : start + 3], start + 3)
        summary = summary_of_docstring(inspect.cleandoc(source[start + 3 : closing])) if closing > 0 else None
        if summary is not None:
            # Code that is not further right than the header ends the function; comments may be anywhere.
            stop = re.compile(rf"\n[ \t]{{0,{len(header['indent'])}}}(?=[^\s#])").search(source, closing)
            if pair := _parsed_pair(source[header.start() : stop.start() if stop else len(source)], header["indent"]):
                yield pair


def _parsed_pair(text: str, indent: str) -> tuple[str, str] | None:
    """The pair of a function that a text begins with, or None if it is not one that passes the filters."""
    if (tree := parse_source(f"if 1:\n{text}" if indent else text)) is None:
        return None
    shift = 1 if indent else 0  # lines before the function's first
    node = tree.body[0].body[0] if isinstance(tree.body[0], ast.If) else tree.body[0]
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    summary = summary_of_docstring(ast.get_docstring(node) or "")
    docstring, *body = node.body
    if summary is None or not body or all(_is_stub(entry) for entry in body):
        return None
    lines = [line.removeprefix(indent) for line in text.split("\n")]
    first, last = docstring.lineno - 1 - shift, (docstring.end_lineno or 0) - shift
    # Something beside the docstring on one of its lines, as in one-line functions.
    if lines[first].lstrip()[:1] not in "rRuU\"'" or body[0].lineno - 1 - shift < last:
        return None
    kept = [*lines[:first], *lines[last : (node.end_lineno or 0) - shift]]
    if not LEAST_LINES <= sum(bool(line.strip()) for line in kept) <= MOST_LINES:
        return None
    return summary, "\n".join(line.rstrip() for line in kept)


def _is_stub(statement: ast.stmt) -> bool:
    """Whether a statement does nothing that could be searched for: pass, ..., another string, or raise."""
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, ast.Pass | ast.Raise)


def _parse(distribution: Distribution) -> Rows:
    files = [file for file in python_files([distribution]) if not GENERATED_FILE.fullmatch(file.stem)]
    return [*sorted(parse_files(files, pairs_of_source))]
