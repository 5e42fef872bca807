"""Draw the similarities of the rows that share batches, one panel per planner, or planners compared, as a PNG."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gcbs_st.commands.shell import make_parser, run_command, tell

EXAMPLE = """
{program} --anchors A.npy --positives P.npy --batch-size 64 --planners gcbs,bisect,best --out batches.png
{program} --measured planners.json --out planners.png
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st draw") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = make_parser(program, __doc__, EXAMPLE)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--anchors", metavar="A.npy", help="(n, d) .npy, unit rows; with the two options that follow")
    source.add_argument(
        "--measured", metavar="FILE", help="from benchmarks/planners.py --json, or lines of gcbs-st plan"
    )
    add("--positives", metavar="P.npy", help="(n, d) .npy; row i is the positive of anchor i")
    add("--batch-size", type=int, metavar="B", help="rows per batch")
    add("--planners", help="names, separated by commas (default: all)")
    add("--batches", type=int, default=8, help="batches per panel (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--out", required=True, help="the .png file")
    arguments = parser.parse_args(argv)
    if arguments.anchors and (arguments.positives is None or arguments.batch_size is None):
        parser.error("--anchors goes with --positives and --batch-size")
    return run_command(program, lambda: _draw_measured(arguments) if arguments.measured else _draw_rows(arguments))


def _draw_rows(arguments: argparse.Namespace) -> None:
    import numpy as np

    from gcbs_st.planners import available, make_planner
    from gcbs_st.reports.charts.pictures import draw_similarity

    anchors, positives = (np.load(path) for path in (arguments.anchors, arguments.positives))
    names = arguments.planners.split(",") if arguments.planners else [n for n in available() if n != "random"]
    planners = {name: make_planner(name) for name in names}  # a name that is none is told before any plans
    orders = {"before planning (random)": np.random.default_rng(arguments.seed).permutation(len(anchors))}
    for name, planner in planners.items():
        tell(f"planning with {name} ...")
        rng = np.random.default_rng(arguments.seed)
        orders[name] = planner.plan(anchors, positives, arguments.batch_size, rng)
    draw_similarity(anchors, positives, orders, arguments.batch_size, arguments.out, batches=arguments.batches)


def _draw_measured(arguments: argparse.Namespace) -> None:
    from gcbs_st.files import write_bytes
    from gcbs_st.reports.charts.planner_chart import planner_chart, read_measurements

    write_bytes(Path(arguments.out), planner_chart(read_measurements(Path(arguments.measured))))
