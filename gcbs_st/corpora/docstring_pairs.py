"""Pairs of a docstring's first sentence and the prose after it, from the installed Python distributions.

Training text that is already on the machine: some 20,000 pairs beside torch, transformers and scipy.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from gcbs_st.corpora.cached_rows import cached_rows
from gcbs_st.corpora.installed import find_distributions, parse_files, parse_source, python_files

logger = logging.getLogger(__name__)

# Part of the cache's key: raise it with every change below that changes the pairs.
FORMAT_VERSION = 1

SUMMARY_WORDS = (3, 40)
PARAGRAPH_WORDS = (6, 100)
WORDS_WITHOUT = 7  # this many words of English prose hold a function word
PLAIN_WORDS = 0.75  # least share of words as in a dictionary: the others are names of arguments, numbers, formulas
ASCII_SHARE = 0.97  # English has few other characters
SHORTEST = 60  # characters; a shorter docstring has not enough words for a pair

HEADER = re.compile(r"^[ \t]*(?=(?:async[ ]+def|def|class)[ ]+\w)", re.MULTILINE)
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
DESCRIPTION_HEADING = re.compile(r"^(?:Explanation|Description|Overview)\n[=~-]{3,}(?:\n+|$)", re.MULTILINE)
NOTES_HEADING = re.compile(r"^Notes?\n[=~-]{3,}\n+", re.MULTILINE)
# Blocks that may stand between a summary and its paragraph: directives (.. versionadded::), tags, indented text.
PASSED_OVER = (".. ", "<", " ")
# A line that begins a list item, a field, a directive, a doctest, a label ("Returns:"), or is a table row or indented.
MARKED_LINE = re.compile(
    r"\s|.*\S\s{3,}\S|[-*+•#:@|>$%<{!]|\.\.|\(?(\d+|[a-z])[.)]\s|[=~^_]{3,}|"
    r"\w+ : |[\w.*,]+( [\w.*,]+){0,2}( \([^()]*\))? ?:(\s|$)"
)
MARKUP_SIGN = re.compile(r"[`*\[]|\(\)| -- ")
MARKUP = (
    (re.compile(r"\s*\[[\w-]+\]_"), ""),  # [1]_, a citation
    (re.compile(r"(?::[\w+.:-]+:)?`+([^`<]+?)\s*<[^`>]+>`+_*"), r"\1"),  # `text <target>`_
    (re.compile(r"(?::[\w+.:-]+:)?`+~[\w.]*?(\w+)(?:\(\))?`+"), r"\1"),  # :class:`~package.Name`
    (re.compile(r"(?::[\w+.:-]+:)?`+[.!]?([^`]+)`+_*"), r"\1"),  # :class:`Name`, ``name``, `name`
    (re.compile(r"(?<!\w)\[([^\W\d][^\[\]]*)\](?:\([^()]*\)|\[[^\[\]]*\])?"), r"\1"),  # [Name], [text](link)
    (re.compile(r"(?<!\w)\*{1,2}(\w[^*]*)\*{1,2}"), r"\1"),  # *emphasis*
    (re.compile(r"(?<=\w)\(\)"), ""),  # name()
    (re.compile(r"(?<= )--(?= )"), "-"),
)
SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\betc\.)(?<!\bvs\.)(?<!\bcf\.)(?<!\bal\.)(?<!\bFig\.)(?<!\bEq\.)"
    r"(?<!\b[A-Z]\.)\s+(?=[\"'(]?[A-Z])"
)
NOT_PROSE = re.compile(
    r"^See\b|[{}<>\\|^~$@#*\[\]`]|::|--|\.\.| ==? |https?:|www\.|\w\(|\(\)|/\w+/|"
    r"(?i:\b(?:copyright|licen[cs]ed?|todo|fixme|xxx|deprecated|noqa|spdx|auto-?generated)\b)"
)
PLAIN_WORD = re.compile(r"[\"'(]*(?:[A-Za-z]?[a-z]+(?:['’/-][A-Za-z]?[a-z]+)*|[AI]|[A-Z]{2,5})[\"')]*[.,:;!?]*[\"')]*")
FUNCTION_WORDS = frozenset(
    "a an the this that these it its is are was be been of to in on for with by from as at and or but not if when "
    "which will can may must should has have into than then all any each no only".split()
)


def load_docstring_pairs(
    distributions: Sequence[str] | None = None, *, distributions_path: Sequence[str] | None = None
) -> list[tuple[str, str]]:
    """Returns the (summary, paragraph) pairs of the installed distributions, sorted, each text once on its side.

    Pairs are kept on disk, so only the first call after an installation reads the files. The arguments are those of
    `gcbs_st.corpora.installed.find_distributions`.
    """
    chosen = find_distributions(distributions, distributions_path)

    def parse() -> list[tuple[str, ...]]:
        pairs = unique_pairs(parse_files(python_files(chosen.values()), pairs_of_source))
        logger.info("found %d docstring pairs", len(pairs))
        return [*pairs]

    key = [FORMAT_VERSION, sys.version_info[:2], [(name, found.version) for name, found in chosen.items()]]
    return [(summary, paragraph) for summary, paragraph in cached_rows("docstrings", key, 2, parse)]


def pairs_of_source(source: str) -> Iterator[tuple[str, str]]:
    """Yields the (summary, paragraph) pair of each module, class and function of a `.py` file's text that has one.

    Parsing whole files takes minutes, so only the definitions whose docstring holds a pair are parsed.
    """
    for quotes in ('"""', "'''"):
        parts = source.split(quotes)
        for number, (before, text) in enumerate(zip(parts, parts[1:], strict=False)):
            # A guess, so that few texts have to be looked at; the parser decides below what is a docstring.
            follows_header = number == 0 or before.rstrip("rRuU").rstrip()[-1:] == ":"
            if len(text) >= SHORTEST and follows_header and pair_of_docstring(inspect.cleandoc(text)) is not None:
                header = max((match.end() for match in HEADER.finditer(before)), default=0)
                if pair := pair_of_docstring(_parsed_docstring(before[header:] + quotes + text + quotes)):
                    yield pair


def pair_of_docstring(docstring: str) -> tuple[str, str] | None:
    """Returns a docstring's first sentence and the English prose that follows it, in one line each, or None.

    The prose is the rest of the first paragraph, or else the next paragraph, or else the first one of the notes. The
    docstring has no indentation (`inspect.cleandoc`).
    """
    first, *blocks = BLANK_LINES.split(DESCRIPTION_HEADING.sub("", docstring))
    summary, *rest = SENTENCE_END.split(_plain_text(first))
    if not _is_prose(summary, SUMMARY_WORDS):
        return None
    following = next((block for block in blocks if not block.startswith(PASSED_OVER)), "")
    notes = NOTES_HEADING.split(docstring, maxsplit=1)[1:]
    note = BLANK_LINES.split(notes[0])[0] if notes else ""
    for paragraph in (" ".join(rest), _plain_text(following), _plain_text(note)):
        if paragraph.endswith(":"):  # announces an example or a list that is not part of the pair
            paragraph = " ".join(SENTENCE_END.split(paragraph)[:-1])
        if (
            paragraph[:1].isupper()
            and paragraph.endswith((".", "!", "?"))
            and _is_prose(paragraph, PARAGRAPH_WORDS)
            and not FUNCTION_WORDS.isdisjoint(paragraph.lower().split())
        ):
            return summary, paragraph
    return None


def summary_of_docstring(docstring: str) -> str | None:
    """Returns a docstring's first sentence without markup, or None if it is not English prose of 3 to 40 words."""
    first = BLANK_LINES.split(DESCRIPTION_HEADING.sub("", docstring), maxsplit=1)[0]
    summary = SENTENCE_END.split(_plain_text(first), maxsplit=1)[0]
    if not _is_prose(summary, SUMMARY_WORDS):
        return None
    words = summary.lower().split()
    # A long English sentence has such a word; a short one ("Compute mean squared error.") may do without.
    return None if len(words) >= WORDS_WITHOUT and FUNCTION_WORDS.isdisjoint(words) else summary


def unique_pairs(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns the pairs in alphabetical order, each text once on its side, whatever its case and white space."""
    kept = []
    seen: set[tuple[int, str]] = set()
    for pair in sorted(set(pairs)):
        keys = {(side, " ".join(text.lower().split())) for side, text in enumerate(pair)}
        if seen.isdisjoint(keys):
            seen |= keys
            kept.append(pair)
    return kept


def _plain_text(block: str) -> str:
    """The prose before the first list item, field, table row or line of code, in one line without light markup."""
    if MARKUP_SIGN.search(block):  # saves a third of the time
        for pattern, replacement in MARKUP:
            block = pattern.sub(replacement, block)
    lines = itertools.takewhile(lambda line: not MARKED_LINE.match(line), block.splitlines())
    return " ".join(" ".join(lines).split())


def _is_prose(text: str, words: tuple[int, int]) -> bool:
    """Whether a line of `words` (least, most) words has few names and numbers, and no code."""
    tokens = text.split()
    if not words[0] <= len(tokens) <= words[1] or not text[0].isalpha() or NOT_PROSE.search(text):
        return False
    ascii_share = 1.0 if text.isascii() else sum(map(str.isascii, text)) / len(text)
    plain = sum(PLAIN_WORD.fullmatch(token) is not None for token in tokens)
    return ascii_share >= ASCII_SHARE and plain >= PLAIN_WORDS * len(tokens)


def _parsed_docstring(definition: str) -> str:
    """The docstring of a class, function or module whose text ends with it; empty if it has none."""
    tree = parse_source(definition)
    node = tree.body[0] if tree is not None and HEADER.match(definition) else tree
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    return ast.get_docstring(node) or ""
