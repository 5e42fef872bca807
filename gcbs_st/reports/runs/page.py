"""The content of a report in, one HTML page or one Markdown text out. Names and values are data, never markup."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gcbs_st.records.tables import markdown_table
from gcbs_st.reports.html import escape, fill_page, png_uri, read_template
from gcbs_st.reports.runs.run_report import Report, Table

_NUMBER = re.compile(r"(x |[+-])?\d[\d.,]*( \[[^\]]*\])?( \d+/\d+)?|nan|inf|-inf|–|")


def report_html(report: Report) -> str:
    """Returns a report as one HTML page that needs nothing else."""
    notes = "\n".join(f"<li>{escape(note)}</li>" for note in report.notes)
    parts = [f"<section>\n<h2>To be aware of</h2>\n<ul>\n{notes}\n</ul>\n</section>"] if notes else []
    parts += [table_html(table) for table in report.results]
    if report.charts:
        figures = "\n".join(_figure_html(title, picture) for title, picture in report.charts.items())
        parts.append(f"<section>\n<h2>Charts</h2>\n<div class='charts'>\n{figures}\n</div>\n</section>")
    parts += [table_html(table) for table in report.origins]
    style = read_template("batches.css") + read_template("report.css")
    return fill_page("report.html", report.title, style, BODY="\n".join(parts))


def _figure_html(title: str, picture: bytes) -> str:
    # A PNG begins with its width and height; what is flat needs the whole line to be legible.
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    wide = " class='wide'" if width > 2.2 * height else ""
    return f"<figure{wide}><img alt='Chart: {escape(title)}' src='{png_uri(picture)}'></figure>"


def table_html(table: Table) -> str:
    """Returns a table as a section of a page; columns of numbers are set to the right."""
    numeric = [all(_NUMBER.fullmatch(row[i]) for row in table.rows) for i in range(len(table.header))]
    kinds = [" class='number'" if number and i else "" for i, number in enumerate(numeric)]
    titled = zip(table.header, kinds, strict=True)
    head = "".join(f"<th scope='col'{kind}>{escape(title)}</th>" for title, kind in titled)
    lines = []
    for first, *rest in table.rows:
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
        lines.append(f"<tr><th scope='row'>{escape(first)}</th>{cells}</tr>")
    rows, title = "\n".join(lines), escape(table.title)
    note = f"<p>{escape(table.note)}</p>\n" if table.note else ""
    # Wide tables scroll by themselves, with the keyboard too.
    return (
        f"<section>\n<h2>{title}</h2>\n{note}<div class='scroll' role='region' aria-label='{title}' tabindex='0'>\n"
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n</section>"
    )


def report_markdown(report: Report, chart_files: Mapping[str, str]) -> str:
    """Returns a report as Markdown; `chart_files` maps titles of charts to their files, as the text names them."""
    blocks = [f"# {_plain(report.title)}"]
    if report.notes:
        blocks += ["## To be aware of", "\n".join(f"- {_plain(note)}" for note in report.notes)]
    blocks += [block for table in report.results for block in _table_markdown(table)]
    if chart_files:
        blocks += ["## Charts", *[f"![{_plain(title)}]({file})" for title, file in chart_files.items()]]
    blocks += [block for table in report.origins for block in _table_markdown(table)]
    return "\n\n".join(blocks) + "\n"


def _table_markdown(table: Table) -> list[str]:
    cells = [[_plain(cell) for cell in row] for row in table.rows]
    rows = markdown_table([_plain(title) for title in table.header], cells)
    return [f"## {_plain(table.title)}", *([_plain(table.note)] if table.note else []), rows]


def _plain(text: str) -> str:
    """Returns text for Markdown, in one line, in which nothing is markup; underscores inside words never are."""
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    line = re.sub(r"([\\`*\[\]<>|&~])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    return re.sub(r"^([#+-])(?=\s|#|$)", r"\\\1", line)
