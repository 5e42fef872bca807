#!/usr/bin/env python3
"""Score a model on the STS tasks; the same as `gcbs-st evaluate-sts`."""

import functools
import sys

from gcbs_st.commands.evaluate import evaluate_sts

main = functools.partial(evaluate_sts, program="python scripts/evaluate_sts.py")

if __name__ == "__main__":
    sys.exit(main())
