#!/usr/bin/env python3
"""Train each arm with each seed, and compare them in pairs; the same as `gcbs-st compare`."""

import functools
import sys

from gcbs_st.commands import compare

main = functools.partial(compare.main, program="python scripts/compare.py")

if __name__ == "__main__":
    sys.exit(main())
