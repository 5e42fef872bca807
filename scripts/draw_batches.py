#!/usr/bin/env python3
"""Draw the similarities of the rows that share batches, or planners compared; the same as `gcbs-st draw`."""

import functools
import sys

from gcbs_st.commands import draw

main = functools.partial(draw.main, program="python scripts/draw_batches.py")

if __name__ == "__main__":
    sys.exit(main())
