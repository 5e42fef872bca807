#!/usr/bin/env python3
"""Draw the similarities of the rows that share batches, before planning and after each planner, as a PNG.

Goes in: two .npy arrays. Comes out: one picture, a panel a planner, bright squares where similar rows meet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

EXAMPLE = """example:
  python scripts/draw_batches.py --anchors A.npy --positives P.npy --batch-size 64 --planners gcbs,bisect,best --out batches.png
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; None takes those of the process.

    Returns:
        0 on success, 2 on a user's mistake, which is explained in one line on stderr.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--anchors", required=True, help="(n, d) .npy, unit rows")
    parser.add_argument("--positives", required=True, help="(n, d) .npy; row i is the positive of anchor i")
    parser.add_argument("--batch-size", type=int, required=True, help="rows a batch")
    parser.add_argument("--planners", help="names, separated by commas (default: all)")
    parser.add_argument("--batches", type=int, default=8, help="batches a panel shows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", required=True, help="the .png file")
    arguments = parser.parse_args(argv)
    import numpy as np

    from gcbs_st.planners import available, make_planner

    try:
        from gcbs_st.pictures import draw_similarity

        anchors, positives = (np.load(path) for path in (arguments.anchors, arguments.positives))
        names = arguments.planners.split(",") if arguments.planners else [n for n in available() if n != "random"]
        orders = {"before planning (random)": np.random.default_rng(arguments.seed).permutation(len(anchors))}
        for name in names:
            print(f"planning with {name} ...", file=sys.stderr)
            rng = np.random.default_rng(arguments.seed)
            orders[name] = make_planner(name).plan(anchors, positives, arguments.batch_size, rng)
        draw_similarity(anchors, positives, orders, arguments.batch_size, arguments.out, batches=arguments.batches)
    except ImportError as error:
        print(f"draw_batches.py: {error}; run: pip install 'gcbs_st[report]'", file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError) as error:
        print(f"draw_batches.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
