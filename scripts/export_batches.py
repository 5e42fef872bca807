#!/usr/bin/env python3
"""Write the batches of a plan as Parquet files, for any trainer; the same as `gcbs-st export`."""

import functools
import sys

from gcbs_st.commands import export

main = functools.partial(export.main, program="python scripts/export_batches.py")

if __name__ == "__main__":
    sys.exit(main())
