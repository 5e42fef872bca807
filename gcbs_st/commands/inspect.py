"""Write one HTML page that shows which texts share a batch, and which of them are probably false negatives.

Goes in: a run's folder, a checkpoint, or saved embeddings with an order and texts. Comes out: a page that needs no network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcbs_st.commands.shell import make_parser, quieten, run_command

if TYPE_CHECKING:
    from gcbs_st.reports.inspection.inspected import Inspected

EXAMPLE = """
{program} --run runs/quickstart/gcbs --out batches.html
{program} --run runs/quickstart/gcbs --step 0 --out first_plan.html
{program} --checkpoint runs/sts/bisect/checkpoint-500 --out batches.html
{program} --anchors A.npy --positives P.npy --order order.npy --batch-size 64 --texts T.jsonl --out batches.html
"""
_FILES = ("anchors", "positives", "order", "batch_size", "texts")


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st inspect") -> int:
    """Runs the command line.

    Args:
        argv: arguments; None takes those of the process.
        program: how the command is called.

    Returns:
        The exit code; see `gcbs_st.commands.shell`. Of what cannot be inspected no page is written.
    """
    parser = make_parser(program, __doc__, EXAMPLE)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="FOLDER", help="of a finished run: config.yaml, results.json, model/, plans/")
    source.add_argument("--checkpoint", metavar="FOLDER", help="holds gcbs_plan.npz")
    source.add_argument("--anchors", metavar="A.npy", help="(n, d) unit rows; with the four options that follow")
    parser.add_argument("--positives", metavar="P.npy", help="(n, d); row i is the positive of anchor i")
    parser.add_argument("--order", metavar="O.npy", help="(n,) integers, each row once; blocks are batches")
    parser.add_argument("--batch-size", type=int, metavar="B", help="rows a batch")
    parser.add_argument(
        "--texts",
        metavar="T.jsonl",
        help="a line a row with anchor and positive; for folders only if the corpus is gone",
    )
    parser.add_argument("--record", metavar="FILE", help="with --anchors: the JSON line that planning printed")
    parser.add_argument("--scale", type=float, help="with --anchors: 1 / temperature of the loss (default: 20)")
    parser.add_argument("--step", type=int, help="with --run: the plan that was in force then (default: the last one)")
    parser.add_argument("--dataset", help="with --checkpoint: which of several datasets")
    parser.add_argument(
        "--max-rows", type=int, help="with folders: encode so many rows at most (default: 65536 static, 4096 else)"
    )
    parser.add_argument("--out", required=True, metavar="PAGE.html", help="the page")
    arguments = parser.parse_args(argv)
    quieten()
    return run_command(program, lambda: _inspect(arguments))


def _inspect(arguments: argparse.Namespace) -> None:
    # After the arguments: the libraries take seconds to import, and --help should not.
    from gcbs_st.files import write_text
    from gcbs_st.reports.html import batches_page

    inspected = open_inspected(arguments)
    content = make_content(inspected)
    charts, missing = draw_charts(inspected.log_history)
    content["notes"] += missing
    page = batches_page(content, charts)
    write_text(Path(arguments.out), page)
    shown = sum(len(group["batches"]) for group in content["groups"])
    megabytes = len(page.encode("utf-8")) / 1e6
    print(f"{arguments.out}: {shown} batches, {megabytes:.1f} MB; open it in a browser.")


def open_inspected(arguments: argparse.Namespace) -> Inspected:
    """Returns what the arguments name.

    Args:
        arguments: of the command line.

    Returns:
        The plan and its run.

    Raises:
        ValueError: options that do not go together, or what the folder or files hold cannot be inspected.
        FileNotFoundError: a corpus that is not there.
    """
    from gcbs_st.planners.quality import SCALE
    from gcbs_st.reports.inspection.inspected import open_checkpoint, open_files, open_run

    kind = next(name for name in ("run", "checkpoint", "anchors") if getattr(arguments, name) is not None)
    allowed = {
        "run": {"step", "texts", "max_rows"},
        "checkpoint": {"dataset", "texts", "max_rows"},
        "anchors": {*_FILES, "record", "scale"},
    }
    given = {name for name, value in vars(arguments).items() if value is not None} - {"out", kind}
    if wrong := sorted(given - allowed[kind]):
        raise ValueError(f"{_option(wrong[0])} does not go with {_option(kind)}; see --help.")
    if arguments.max_rows is not None and arguments.max_rows < 1:
        raise ValueError(f"--max-rows: got {arguments.max_rows}, expected at least 1.")
    if arguments.scale is not None and not 0 < arguments.scale < float("inf"):
        raise ValueError(f"--scale: got {arguments.scale}, expected a number above 0.")
    texts = None if arguments.texts is None else Path(arguments.texts)
    if kind == "run":
        return open_run(Path(arguments.run), step=arguments.step, texts=texts, max_rows=arguments.max_rows)
    if kind == "checkpoint":
        folder = Path(arguments.checkpoint)
        return open_checkpoint(folder, texts=texts, dataset=arguments.dataset, max_rows=arguments.max_rows)
    if missing := [name for name in _FILES if getattr(arguments, name) is None]:
        raise ValueError(
            f"--anchors goes with {', '.join(map(_option, _FILES[1:]))}; {_option(missing[0])} is missing."
        )
    return open_files(
        Path(arguments.anchors),
        Path(arguments.positives),
        Path(arguments.order),
        arguments.batch_size,
        Path(arguments.texts),
        record=None if arguments.record is None else Path(arguments.record),
        scale=SCALE if arguments.scale is None else arguments.scale,
    )


def make_content(inspected: Inspected) -> dict[str, Any]:
    """Returns the content of the page, without its charts.

    Args:
        inspected: the plan and its run.

    Returns:
        What `gcbs_st.reports.html.batches_page` takes.

    Raises:
        ValueError: embeddings or texts that cannot be inspected.
    """
    from gcbs_st.reports.inspection.inspector import inspect_plan
    from gcbs_st.reports.inspection.plan_table import plan_table

    return {
        **inspect_plan(inspected.subject),
        "plans": plan_table(inspected.plans, inspected.log_history, inspected.subject),
        "step": inspected.step,
        "origin": dict(inspected.origin),
    }


def draw_charts(log_history: Sequence[Mapping[str, Any]]) -> tuple[dict[str, bytes], list[str]]:
    """Returns the charts of a run by title, or a note why there are none.

    Args:
        log_history: what the run logged.

    Returns:
        The PNGs, and notes for the page.
    """
    if not log_history:
        return {}, []
    try:
        from gcbs_st.reports.charts.charts import run_charts

        return run_charts(log_history), []
    except ImportError:
        return {}, ["Charts of the run are left out: they need matplotlib (pip install 'gcbs_st[report]')."]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
