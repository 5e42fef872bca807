"""Plan the batches of saved embeddings, write the order, and print one JSON line that says how good it is.

Goes in: two .npy arrays. Comes out: an .npy order whose consecutive blocks are the batches, and its quality.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gcbs_st.commands.shell import make_parser, run_command

if TYPE_CHECKING:
    import numpy as np

    from gcbs_st.batches.shared_values import SharedValues

EXAMPLE = """
{program} --anchors A.npy --positives P.npy --batch-size 64 --planner gcbs --out order.npy
{program} --anchors A.npy --positives P.npy --batch-size 64 --planner gcbs --option quantile=0.99 --seed 1 \\
    --out order.npy
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st plan") -> int:
    """Runs the command line.

    Args:
        argv: arguments; None takes those of the process.
        program: how the command is called.

    Returns:
        The exit code; see `gcbs_st.commands.shell`.
    """
    arguments = parse_arguments(argv, program)
    return run_command(program, lambda: _plan(arguments))


def parse_arguments(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    """Returns the parsed command line.

    Args:
        argv: arguments; None takes those of the process.
        program: how the command is called.
    """
    parser = make_parser(program, __doc__, EXAMPLE)
    parser.add_argument("--anchors", required=True, help="(n, d) .npy, unit rows, float16 or float32")
    parser.add_argument("--positives", required=True, help="(n, d) .npy; row i is the positive of anchor i")
    parser.add_argument("--batch-size", type=int, required=True, help="rows a batch")
    parser.add_argument("--planner", required=True, help="gcbs, random, ...")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the planner; may be repeated"
    )
    parser.add_argument("--groups", help="(n,) .npy of integers; rows of one group never share a batch")
    parser.add_argument(
        "--scale",
        type=float,
        default=20.0,
        help="1 / temperature that the plan is made for and judged at (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", required=True, help=".npy file of the order")
    return parser.parse_args(argv)


def _plan(arguments: argparse.Namespace) -> None:
    import numpy as np

    from gcbs_st.batches.shared_values import SharedValues
    from gcbs_st.files import write_bytes
    from gcbs_st.planners import check_order, make_planner
    from gcbs_st.planners.base import abilities_of, check_batches, configured
    from gcbs_st.planners.quality import plan_quality

    # Memory-mapped, so that a planner that reads in chunks never holds all of them.
    anchors, positives = (np.load(path, mmap_mode="r") for path in (arguments.anchors, arguments.positives))
    made = make_planner(arguments.planner, dict(parse_option(option) for option in arguments.option))
    planner = configured(made, scale=arguments.scale, show_progress=sys.stderr.isatty())
    began = time.perf_counter()
    order = planner.plan(anchors, positives, arguments.batch_size, np.random.default_rng(arguments.seed))
    once = abilities_of(planner).covers_each_row_once
    checked = (len(anchors), arguments.planner) if once else (len(anchors), arguments.batch_size, arguments.planner)
    order = (check_order if once else check_batches)(order, *checked)
    if arguments.groups is not None:
        groups = SharedValues(np.arange(len(anchors)), np.load(arguments.groups).reshape(len(anchors)))
        order = _keep_apart(groups, order, arguments.batch_size)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    content = io.BytesIO()
    np.save(content, order)
    write_bytes(Path(arguments.out), content.getvalue())
    record = {"planner": arguments.planner, "seconds": round(seconds, 3), "peak_bytes": peak}
    if len(order) >= arguments.batch_size:
        record |= plan_quality(anchors, positives, order, arguments.batch_size, scale=arguments.scale).rounded()
    print(json.dumps(record))


def parse_option(text: str) -> tuple[str, object]:
    """Returns key and value of KEY=VALUE, the value as YAML reads it.

    Args:
        text: What --option was given.

    Returns:
        The pair.

    Raises:
        ValueError: no equals sign.
    """
    import yaml

    key, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--option {text}: expected KEY=VALUE, for example --option quantile=0.99")
    return key, yaml.safe_load(value)


def _keep_apart(groups: SharedValues, order: np.ndarray, batch_size: int) -> np.ndarray:
    """The order with rows of one group in different batches; the rows that fill no batch stay at the end."""
    import numpy as np

    whole = len(order) // batch_size * batch_size
    separated = groups.separate(order[:whole], batch_size)
    if found := groups.clashes(separated, batch_size):
        print(
            f"--groups: a group holds {found.holders} of {found.rows} rows, and there are {found.batches} batches: "
            f"{100 * found.share:.1f} % of the rows share a batch with another of their group.",
            file=sys.stderr,
        )
    return np.concatenate([separated, order[whole:]])


if __name__ == "__main__":
    sys.exit(main())
