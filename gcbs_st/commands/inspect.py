"""Write one HTML page that shows which texts share a batch, and which of them are probably false negatives."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcbs_st.commands.shell import make_parser, quieten, run_command

if TYPE_CHECKING:
    from gcbs_st.reports.inspection.inspected import Inspected

EXAMPLE = """
{program} --run runs/quickstart/gcbs --out batches.html
{program} --run runs/quickstart/gcbs --step 0 --out first_plan.html
{program} --checkpoint runs/sts/bisect/checkpoint-500 --out batches.html
{program} --checkpoint out --texts pairs.jsonl --out batches.html
{program} --anchors A.npy --positives P.npy --order order.npy --batch-size 64 --texts T.jsonl --out batches.html
"""
NO_CHARTS = "Charts of the run are left out: they need matplotlib (pip install 'gcbs_st[report]')."
_FILES = ("anchors", "positives", "order", "batch_size", "texts")


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st inspect") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = make_parser(program, __doc__, EXAMPLE)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, metavar="FOLDER", help="of a finished run")
    source.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="or a folder of checkpoints: the newest")
    source.add_argument("--anchors", type=Path, metavar="A.npy", help="(n, d) unit rows; with the next four options")
    add("--positives", type=Path, metavar="P.npy", help="(n, d); row i is the positive of anchor i")
    add("--order", type=Path, metavar="O.npy", help="(n,) integers, each row once; blocks are batches")
    add("--batch-size", type=int, metavar="B", help="rows per batch")
    add("--texts", type=Path, metavar="T.jsonl", help="anchor and positive per row; for folders if the corpus is gone")
    add("--columns", metavar="A,P", help="with --checkpoint: what --texts calls them (default: anchor,positive)")
    add("--record", type=Path, metavar="FILE", help="with --anchors: the JSON line that planning printed")
    add("--scale", type=float, help="with --anchors: 1 / temperature of the loss (default: 20)")
    add("--step", type=int, help="with --run: the plan that was in force then (default: the last one)")
    add("--dataset", help="with --checkpoint: which of several datasets")
    add("--max-rows", type=int, help="with folders: encode at most that many rows (default: 65536 static, 4096 else)")
    add("--out", required=True, metavar="PAGE.html", help="the page")
    arguments = parser.parse_args(argv)
    quieten()
    return run_command(program, lambda: _inspect(arguments))


def _inspect(arguments: argparse.Namespace) -> None:
    from gcbs_st.files import write_text
    from gcbs_st.reports.charts.charts import run_charts
    from gcbs_st.reports.html import batches_page

    inspected = _open_inspected(arguments)
    content = make_content(inspected)
    charts: dict[str, bytes] = {}
    try:
        charts = run_charts(inspected.log_history)
    except ImportError:
        content["notes"].append(NO_CHARTS)
    page = batches_page(content, charts)
    write_text(Path(arguments.out), page)
    shown = sum(len(group["batches"]) for group in content["groups"])
    print(f"{arguments.out}: {shown} batches, {len(page.encode()) / 1e6:.1f} MB; open it in a browser.")


def _open_inspected(arguments: argparse.Namespace) -> Inspected:
    from gcbs_st.planners.quality import SCALE
    from gcbs_st.reports.inspection.inspected import open_checkpoint, open_files, open_run
    from gcbs_st.reports.inspection.pair_texts import PAIR

    kind = next(name for name in ("run", "checkpoint", "anchors") if getattr(arguments, name) is not None)
    allowed = {
        "run": {"step", "texts", "max_rows"},
        "checkpoint": {"dataset", "texts", "columns", "max_rows"},
        "anchors": {*_FILES, "record", "scale"},
    }
    given = {name for name, value in vars(arguments).items() if value is not None} - {"out", kind}
    if wrong := sorted(given - allowed[kind]):
        raise ValueError(f"{_option(wrong[0])} does not go with {_option(kind)}; see --help.")
    if arguments.max_rows is not None and arguments.max_rows < 1:
        raise ValueError(f"--max-rows: got {arguments.max_rows}, expected at least 1.")
    if arguments.scale is not None and not 0 < arguments.scale < float("inf"):
        raise ValueError(f"--scale: got {arguments.scale}, expected a number above 0.")
    texts = {"texts": arguments.texts, "max_rows": arguments.max_rows}
    if kind == "run":
        return open_run(arguments.run, step=arguments.step, **texts)
    if kind == "checkpoint":
        columns = [name.strip() for name in (arguments.columns or ",".join(PAIR)).split(",")]
        if len(columns) != len(PAIR):
            raise ValueError(f"--columns: got {arguments.columns}, expected two names, of anchors and positives.")
        return open_checkpoint(arguments.checkpoint, dataset=arguments.dataset, columns=columns, **texts)
    if missing := [name for name in _FILES if getattr(arguments, name) is None]:
        others = ", ".join(map(_option, _FILES[1:]))
        raise ValueError(f"--anchors goes with {others}; {_option(missing[0])} is missing.")
    scale = SCALE if arguments.scale is None else arguments.scale
    return open_files(*(getattr(arguments, name) for name in _FILES), record=arguments.record, scale=scale)


def make_content(inspected: Inspected) -> dict[str, Any]:
    """Returns the content of the page for `gcbs_st.reports.html.batches_page`."""
    from gcbs_st.reports.inspection.inspector import inspect_plan
    from gcbs_st.reports.inspection.plan_table import plan_table

    return {
        **inspect_plan(inspected.subject),
        "plans": plan_table(inspected.plans, inspected.log_history, inspected.subject),
        "step": inspected.step,
        "origin": dict(inspected.origin),
    }


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
