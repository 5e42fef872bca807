#!/usr/bin/env python3
"""Write one HTML page that shows which texts share a batch; the same as `gcbs-st inspect`."""

import functools
import sys

from gcbs_st.commands import inspect

main = functools.partial(inspect.main, program="python scripts/inspect_batches.py")

if __name__ == "__main__":
    sys.exit(main())
