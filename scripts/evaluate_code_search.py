#!/usr/bin/env python3
"""Score a model on code search; the same as `gcbs-st evaluate-code-search`."""

import functools
import sys

from gcbs_st.commands.evaluate import evaluate_code_search

main = functools.partial(evaluate_code_search, program="python scripts/evaluate_code_search.py")

if __name__ == "__main__":
    sys.exit(main())
