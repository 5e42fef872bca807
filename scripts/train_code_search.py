#!/usr/bin/env python3
"""Train code search once for each run of a configuration; the same as `gcbs-st train-code-search`."""

import functools
import sys

from gcbs_st.commands.train import train_code_search

main = functools.partial(train_code_search, program="python scripts/train_code_search.py")

if __name__ == "__main__":
    sys.exit(main())
