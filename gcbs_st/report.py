"""Records in, tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("STSBenchmark-dev", "STS-B dev", "{:.2f}"),
    ("STSBenchmark", "STS-B test", "{:.2f}"),
    ("avg", "STS mean", "{:.2f}"),
    ("heldout_mrr", "held-out MRR", "{:.2f}"),
    ("train_loss", "training loss", "{:.3f}"),
    ("gap_closed", "gap closed", "{:.3f}"),
    ("steps", "steps", "{:d}"),
    ("seconds_training", "training s", "{:.1f}"),
    ("seconds_embedding", "of it embedding s", "{:.1f}"),
    ("seconds_planning", "of it planning s", "{:.1f}"),
)


def experiment_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a Markdown table, a row a run.

    Args:
        records: by name of the run, "before" for the untrained model.

    Returns:
        The table; a column that no record has is left out, and a mean of one single task is as well.
    """
    tasks = {key for record in records.values() for key in record if key.startswith(("STS", "SICK"))}
    tests = {task for task in tasks if not task.endswith(("-dev", "-train", "-all"))}
    columns = [
        (key, title, form)
        for key, title, form in _COLUMNS
        if any(key in record for record in records.values()) and not (key == "avg" and len(tests) < 2)
    ]
    rows = [
        ["before training" if name == "before" else name]
        + [form.format(record[key]) if record.get(key) is not None else "" for key, _, form in columns]
        for name, record in records.items()
    ]
    return markdown_table(["batches", *[title for _, title, _ in columns]], rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns are also aligned in plain text, the first to the left.

    Args:
        header: titles of the columns.
        rows: as many cells each.

    Returns:
        The lines, without a final line end.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *[line(row) for row in rows]])
