#!/usr/bin/env python3
"""Plan the batches of saved embeddings, and print how good the plan is; the same as `gcbs-st plan`."""

import functools
import sys

from gcbs_st.commands import plan

main = functools.partial(plan.main, program="python scripts/plan_batches.py")

if __name__ == "__main__":
    sys.exit(main())
