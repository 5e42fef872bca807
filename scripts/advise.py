#!/usr/bin/env python3
"""Say whether composed batches will help on some data, and with which setting; the same as `gcbs-st advise`."""

import functools
import sys

from gcbs_st.commands import advise

main = functools.partial(advise.main, program="python scripts/advise.py")

if __name__ == "__main__":
    sys.exit(main())
