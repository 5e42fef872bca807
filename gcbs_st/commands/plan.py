"""Plan the batches of saved embeddings, write the order, and print one JSON line that says how good it is."""

from __future__ import annotations

import argparse
import io
import json
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcbs_st.commands.shell import make_parser, run_command

# From more rows than this the figures are estimated, as those that a trainer logs.
_MEASURED_ROWS = 200_000

if TYPE_CHECKING:
    import numpy as np

    from gcbs_st.batches.shared_values import SharedValues
    from gcbs_st.planners.algorithms.contradictions import Contradictions

EXAMPLE = """
{program} --anchors A.npy --positives P.npy --batch-size 64 --planner gcbs --out order.npy
{program} --anchors A.npy --positives P.npy --batch-size 64 --planner gcbs --option quantile=0.99 --seed 1 \\
    --out order.npy
{program} --anchors A.npy --positives P.npy --batch-size 64 --planner bisect --memory-budget 4GB --out order.npy
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st plan") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = make_parser(program, __doc__, EXAMPLE)
    add = parser.add_argument
    add("--anchors", required=True, help="(n, d) .npy, unit rows, float16 or float32")
    add("--positives", required=True, help="(n, d) .npy; row i is the positive of anchor i")
    add("--batch-size", type=int, required=True, help="rows per batch")
    add("--planner", required=True, help="gcbs, random, ...")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="of the planner; may be repeated")
    add("--groups", help="(n,) .npy of integers; rows of one group never share a batch")
    add(
        "--margin",
        type=float,
        help="rows that score above this times an anchor's own positive are no negatives of it, as in a guarded loss",
    )
    add("--scale", type=float, default=20.0, help="1 / temperature of the loss (default: %(default)s)")
    add(
        "--memory-budget",
        metavar="SIZE",
        help="bytes that the process may hold, such as 4GB: more rows than that are planned in cells of near rows, by way "
        "of a file beside --out",
    )
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--out", required=True, help=".npy file of the order")
    arguments = parser.parse_args(argv)
    return run_command(program, lambda: _plan(arguments))


def _plan(arguments: argparse.Namespace) -> None:
    import numpy as np

    from gcbs_st.batches.shared_values import SharedValues
    from gcbs_st.files import write_bytes
    from gcbs_st.planners import check_order, make_planner
    from gcbs_st.planners.algorithms.mapped_rows import ReleasedRows
    from gcbs_st.planners.base import abilities_of, check_batches, configured
    from gcbs_st.planners.cells import plan_in_cells
    from gcbs_st.planners.estimate import estimate_quality
    from gcbs_st.planners.quality import plan_quality

    # Memory-mapped, so that a planner that reads in chunks never holds all of them.
    anchors, positives = (np.load(path, mmap_mode="r") for path in (arguments.anchors, arguments.positives))
    made = make_planner(arguments.planner, dict(parse_option(option) for option in arguments.option))
    groups = None
    if arguments.groups is not None:
        groups = SharedValues(
            np.arange(len(anchors)), np.load(arguments.groups).reshape(len(anchors)), count=len(anchors)
        )
    against = _contradictions(arguments.margin, groups)
    if arguments.margin is not None and not hasattr(made, "contradictions"):
        print(f"--margin: {arguments.planner} plans without it; it is measured only.", file=sys.stderr)
    planner = configured(made, scale=arguments.scale, show_progress=sys.stderr.isatty(), contradictions=against)
    budget = None if arguments.memory_budget is None else parse_bytes(arguments.memory_budget)
    began, rng = time.perf_counter(), np.random.default_rng(arguments.seed)
    if budget is None:
        order = planner.plan(anchors, positives, arguments.batch_size, rng)
    else:
        folder = Path(arguments.out).parent
        folder.mkdir(parents=True, exist_ok=True)
        order = plan_in_cells(
            planner, anchors, positives, arguments.batch_size, rng, memory_budget=budget, folder=folder
        )
    once = abilities_of(planner).covers_each_row_once
    checked = (len(anchors), arguments.planner) if once else (len(anchors), arguments.batch_size, arguments.planner)
    order = (check_order if once else check_batches)(order, *checked)
    if groups is not None:
        order = _keep_apart(groups, order, arguments.batch_size)
    seconds = time.perf_counter() - began
    content = io.BytesIO()
    np.save(content, order)
    write_bytes(Path(arguments.out), content.getvalue())
    record: dict[str, Any] = {"planner": arguments.planner, "seconds": round(seconds, 3), "peak_bytes": peak_bytes()}
    if len(order) >= arguments.batch_size:
        # Against all rows it would take longer than the plan where there are many, and hold all of them.
        measure = plan_quality if budget is None and len(anchors) <= _MEASURED_ROWS else estimate_quality
        sides: Any = (anchors, positives) if budget is None else (ReleasedRows(anchors), ReleasedRows(positives))
        measured = measure(
            sides[0], sides[1], order, arguments.batch_size, scale=arguments.scale, contradictions=against
        )
        record |= {**measured.rounded(), "estimated": measure is estimate_quality}
        if budget is not None:  # which is one of all that the process does
            record["peak_bytes"] = peak_bytes()
    print(json.dumps(record))


def peak_bytes() -> int:
    """Returns the most memory that this process has held, in bytes."""
    try:
        # What the kernel counts as the process's own also holds what its parent held when it was started.
        held = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        held = None
    if held is not None:
        return int(held[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def parse_bytes(text: str) -> int:
    """Returns the bytes of a size such as 500MB or 4GB; raises a ValueError for anything else.

    >>> parse_bytes("4GB"), parse_bytes("1.5 MB"), parse_bytes("1000")
    (4000000000, 1500000, 1000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ValueError(f"--memory-budget: got {text!r}, expected a size such as 500MB or 4GB.")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


def parse_option(text: str) -> tuple[str, object]:
    """Returns key and value of KEY=VALUE, the value as YAML reads it; raises a ValueError without an equals sign."""
    import yaml

    key, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--option {text}: expected KEY=VALUE, for example --option quantile=0.99")
    return key, yaml.safe_load(value)


def _contradictions(margin: float | None, groups: SharedValues | None) -> Contradictions | None:
    """What is no negative by a margin, and by groups; None where all is."""
    from gcbs_st.planners.algorithms.contradictions import Contradictions

    if margin is not None and not margin >= 0:
        raise ValueError(f"--margin: got {margin}, expected at least 0.")
    if groups is None:
        return Contradictions(margin) or None
    return Contradictions(margin, None, groups.held.starts, groups.held.values, groups.held.strong) or None


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
