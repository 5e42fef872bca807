#!/usr/bin/env python3
"""Score a model on retrieval; the same as `gcbs-st evaluate-retrieval`."""

import functools
import sys

from gcbs_st.commands.evaluate import evaluate_retrieval

main = functools.partial(evaluate_retrieval, program="python scripts/evaluate_retrieval.py")

if __name__ == "__main__":
    sys.exit(main())
