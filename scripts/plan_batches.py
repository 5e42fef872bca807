#!/usr/bin/env python3
"""Plan the batches of saved embeddings, and print how good the plan is; the same as `gcbs-st plan`."""

import functools
import sys

from gcbs_st.commands import plan
from gcbs_st.commands.plan import parse_option as parse_option  # benchmark_planners.py reads options alike

main = functools.partial(plan.main, program="python scripts/plan_batches.py")

if __name__ == "__main__":
    sys.exit(main())
