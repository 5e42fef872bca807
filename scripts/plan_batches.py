#!/usr/bin/env python3
"""Plan the batches of saved embeddings, write the order, and print one JSON line that says how good it is.

Goes in: two .npy arrays. Comes out: an .npy order whose consecutive blocks are the batches, and its quality.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

EXAMPLE = """examples:
  python scripts/plan_batches.py --anchors A.npy --positives P.npy --batch-size 64 --planner gcbs --out order.npy
  python scripts/plan_batches.py --anchors A.npy --positives P.npy --batch-size 64 --planner gcbs --option quantile=0.99 --seed 1 --out order.npy
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; None takes those of the process.

    Returns:
        0 on success, 2 on a user's mistake, which is explained in one line on stderr.
    """
    arguments = parse_arguments(argv)
    import numpy as np

    from gcbs_st.duplicates import SharedValues
    from gcbs_st.planners import check_order, make_planner
    from gcbs_st.quality import plan_quality

    try:
        # Memory-mapped, so that a planner that reads in chunks never holds all of them.
        anchors, positives = (np.load(path, mmap_mode="r") for path in (arguments.anchors, arguments.positives))
        planner = make_planner(arguments.planner, dict(parse_option(option) for option in arguments.option))
        if hasattr(planner, "show_progress"):
            planner.show_progress = sys.stderr.isatty()
        began = time.perf_counter()
        order = planner.plan(anchors, positives, arguments.batch_size, np.random.default_rng(arguments.seed))
        overlapping = getattr(planner, "overlapping", False)
        if not overlapping:
            order = check_order(order, len(anchors), arguments.planner)
        if arguments.groups is not None:
            groups = SharedValues(np.load(arguments.groups).reshape(len(anchors), -1))
            order = keep_apart(groups, order, arguments.batch_size)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        save(Path(arguments.out), order)
        record = {"planner": arguments.planner, "seconds": round(seconds, 3), "peak_bytes": peak}
        if len(order) >= arguments.batch_size:
            quality = plan_quality(
                anchors, positives, order, arguments.batch_size, scale=arguments.scale, repeats=overlapping
            )
            record |= quality.rounded()
    except (ValueError, TypeError, OSError) as error:
        print(f"plan_batches.py: {error}", file=sys.stderr)
        return 2
    print(json.dumps(record))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; argparse itself exits with code 2 on a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--anchors", required=True, help="(n, d) .npy, unit rows, float16 or float32")
    parser.add_argument("--positives", required=True, help="(n, d) .npy; row i is the positive of anchor i")
    parser.add_argument("--batch-size", type=int, required=True, help="rows a batch")
    parser.add_argument("--planner", required=True, help="gcbs, random, ...")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the planner; may be repeated"
    )
    parser.add_argument("--groups", help="(n,) .npy of integers; rows of one group never share a batch")
    parser.add_argument(
        "--scale", type=float, default=20.0, help="1 / temperature at which the plan is judged (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", required=True, help=".npy file of the order")
    return parser.parse_args(argv)


def parse_option(text: str) -> tuple[str, object]:
    """Return key and value of KEY=VALUE, the value as YAML reads it.

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


def keep_apart(groups, order, batch_size):  # noqa: ANN001, ANN201 - numpy is imported late
    """Return the order with rows of one group in different batches; the rows that fill no batch stay at the end."""
    import numpy as np

    whole = len(order) // batch_size * batch_size
    separated = groups.separate(order[:whole], batch_size)
    if separated is None:
        raise ValueError("--groups: no way was found to keep the rows of each group in different batches.")
    return np.concatenate([separated, order[whole:]])


def save(path: Path, order) -> None:  # noqa: ANN001 - numpy is imported late
    """Write the order under a temporary name and rename it.

    Args:
        path: The .npy file.
        order: (n,) integers.
    """
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.tmp")
    with staged.open("wb") as file:
        np.save(file, order)
    os.replace(staged, path)


if __name__ == "__main__":
    sys.exit(main())
