"""The table of docs/works-with.md: made of the records of a run, and checked against what the cases expect."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version

from matrix.case import COLUMNS, GROUPS, Case
from matrix.launch import Records

BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"
PACKAGES = ("sentence-transformers", "transformers", "accelerate", "datasets", "torch", "peft", "optuna")


def disagreements(cases: Iterable[Case], records: Records) -> list[str]:
    """A line for each cell whose record is not what was expected."""
    found = []
    for case in cases:
        for column in COLUMNS:
            expected = case.cells[column].kind
            record = records.get((case.name, column), {"outcome": "n/a" if expected == "n/a" else "not run"})
            if record["outcome"] != expected:
                found.append(
                    f"{case.name}, {column}: {record['outcome']}, expected {expected}. {record.get('why', '')}"
                )
    return found


def table(cases: Iterable[Case]) -> list[str]:
    """The lines of the table: a head for each group, a line for each case, no cell empty."""
    cases, lines = list(cases), []
    for group in GROUPS:
        own = [case for case in cases if case.group == group]
        if own:
            lines += [f"| {group} | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
            lines += [f"| {case.name} | {' | '.join(str(case.cells[column]) for column in COLUMNS)} |" for case in own]
            lines.append("")
    return lines


def block(cases: Iterable[Case], records: Records, seconds: float, processor_seconds: float) -> str:
    """What stands between the marks: the table of a run in which every cell was as expected, and where it was run."""
    cases = list(cases)
    works = sum(record["outcome"] == "works" for record in records.values())
    refused = sum(record["outcome"] == "refused" for record in records.values())
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    summary = f"{len(cases)} features, {len(records)} cells run: {works} work, {refused} are refused with a reason"
    return "\n".join(
        [
            BEGIN,
            f"<details><summary>{summary}</summary>",
            "",
            *table(cases),
            "</details>",
            "",
            f"Run on {datetime.now(UTC):%Y-%m-%d} in {seconds:.0f} seconds ({processor_seconds:.0f} processor seconds) "
            f"on {len(os.sched_getaffinity(0))} cores, with {versions}.",
            END,
        ]
    )


def table_in(text: str) -> list[str]:
    """The table's lines that a text holds between the marks.

    Raises:
        ValueError: it has no such marks.
    """
    found = re.search(f"{BEGIN}\n(.*?){END}", text, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"the text has no lines {BEGIN} and {END}")
    return [line for line in found.group(1).splitlines() if line.startswith("|")]


def with_block(text: str, new: str) -> str:
    """The text with another block between the marks."""
    table_in(text)
    before, rest = text.split(BEGIN, 1)
    return before + new + rest.split(END, 1)[1]
