"""The content of a report in, one HTML page or one Markdown text out. Names and values are data, never markup."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from importlib.resources import files

from gcbs_st.records.tables import markdown_table
from gcbs_st.reports.runs.run_report import Report, Table

# Nothing but the page's own style and pictures: no script at all, no connection.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src '{policy}'; img-src data:; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1></header>
<main>
{body}
</main>
</body>
</html>
"""
# What the page needs beside the style that it shares with the page of the batches.
_STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); gap: 16px; }
.charts img { width: 100%; height: auto; display: block; background: #ffffff; border: 1px solid var(--line); }
.charts figure { margin: 0; }
.charts .wide { grid-column: 1 / -1; }
.charts .wide img { width: auto; max-width: 100%; }
tbody th { font-weight: 600; }
th, td { max-width: 40em; overflow-wrap: break-word; unicode-bidi: isolate; }
"""
_NUMBER = re.compile(r"(x |[+-])?\d[\d.,]*( \[[^\]]*\])?( \d+/\d+)?|nan|inf|-inf|–|")


def report_html(report: Report) -> str:
    """Returns a report as one HTML page that needs nothing else.

    Args:
        report: its content.
    """
    style = (files("gcbs_st.reports.inspection") / "templates" / "batches.css").read_text(encoding="utf-8") + _STYLE
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    parts = [_notes_html(report)] if report.notes else []
    parts += [_table_html(table) for table in report.results]
    if report.charts:
        parts.append("<section>\n<h2>Charts</h2>\n<div class='charts'>")
        parts += [_figure_html(title, picture) for title, picture in report.charts.items()]
        parts.append("</div>\n</section>")
    parts += [_table_html(table) for table in report.origins]
    return _PAGE.format(policy=f"sha256-{digest}", title=_escape(report.title), style=style, body="\n".join(parts))


def _escape(text: str) -> str:
    """Text for HTML; halves of surrogate pairs, which no encoding has, become question marks."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def _notes_html(report: Report) -> str:
    items = "\n".join(f"<li>{_escape(note)}</li>" for note in report.notes)
    return f"<section>\n<h2>To be aware of</h2>\n<ul>\n{items}\n</ul>\n</section>"


def _figure_html(title: str, picture: bytes) -> str:
    data = base64.b64encode(picture).decode("ascii")
    # A PNG begins with its width and height; what is flat needs the whole line to be legible.
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    wide = " class='wide'" if width > 2.2 * height else ""
    return f"<figure{wide}><img alt='Chart: {_escape(title)}' src='data:image/png;base64,{data}'></figure>"


def _table_html(table: Table) -> str:
    numeric = [all(_NUMBER.fullmatch(row[i]) for row in table.rows) for i in range(len(table.header))]
    kinds = [" class='number'" if number and i else "" for i, number in enumerate(numeric)]
    head = "".join(
        f"<th scope='col'{kind}>{_escape(title)}</th>" for title, kind in zip(table.header, kinds, strict=True)
    )
    lines = []
    for first, *rest in table.rows:
        cells = "".join(f"<td{kind}>{_escape(cell)}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
        lines.append(f"<tr><th scope='row'>{_escape(first)}</th>{cells}</tr>")
    rows, title = "\n".join(lines), _escape(table.title)
    note = f"<p>{_escape(table.note)}</p>\n" if table.note else ""
    # Wide tables scroll by themselves, with the keyboard too.
    return (
        f"<section>\n<h2>{title}</h2>\n{note}<div class='scroll' role='region' aria-label='{title}' tabindex='0'>\n"
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n</section>"
    )


def report_markdown(report: Report, chart_files: Mapping[str, str]) -> str:
    """Returns a report as Markdown.

    Args:
        report: its content.
        chart_files: title of a chart -> its file, as the text names it.
    """
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
    """Text for Markdown, in one line, in which nothing is markup; underscores inside words never are."""
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    line = re.sub(r"([\\`*\[\]<>|&~])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    return re.sub(r"^([#+-])(?=\s|#|$)", r"\\\1", line)
