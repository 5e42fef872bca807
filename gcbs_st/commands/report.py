"""Write a report over finished runs: one HTML page and one Markdown text, with charts.

DIR/report.html needs nothing else; DIR/report.md shows the charts of DIR/report_charts/.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from gcbs_st.commands.shell import make_parser, run_command, tell

EXAMPLE = """
{program} runs/quickstart --out runs/quickstart/report
{program} runs/sts/random runs/sts/bisect runs/compare_static --out runs/report
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st report") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = make_parser(program, __doc__, EXAMPLE)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, of an experiment or of a comparison")
    parser.add_argument("--out", default="runs/report", metavar="DIR", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    return run_command(program, lambda: _report(arguments))


def _report(arguments: argparse.Namespace) -> None:
    from gcbs_st.files import write_bytes, write_text
    from gcbs_st.records.run_folder import read_runs
    from gcbs_st.reports.runs.page import report_html, report_markdown
    from gcbs_st.reports.runs.run_report import make_report

    runs = read_runs([Path(folder) for folder in arguments.runs])
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file, expected a folder")
    try:
        report = make_report(runs)
    except ImportError as error:
        tell(f"No charts: {error}")
        report = make_report(runs, with_charts=False)
    names = {}
    for title, picture in report.charts.items():
        names[title] = f"report_charts/{re.sub('[^a-z0-9]+', '_', title.lower()).strip('_')}.png"
        write_bytes(out / names[title], picture)
    write_text(out / "report.md", report_markdown(report, names))
    write_text(out / "report.html", report_html(report))
    for note in report.notes:
        tell(note)
    print(f"{report.title}: {out}/report.html and {out}/report.md")
