#!/usr/bin/env python3
"""Score a model through mteb, and leave result files in mteb's own format; the same as `gcbs-st evaluate-mteb`."""

import functools
import sys

from gcbs_st.commands import evaluate_mteb

main = functools.partial(evaluate_mteb.main, program="python scripts/evaluate_mteb.py")

if __name__ == "__main__":
    sys.exit(main())
