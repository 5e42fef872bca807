#!/usr/bin/env python3
"""Train sentence embeddings once for each run of a configuration; the same as `gcbs-st train-sts`."""

import functools
import sys

from gcbs_st.commands.train import train_sts

main = functools.partial(train_sts, program="python scripts/train_sts.py")

if __name__ == "__main__":
    sys.exit(main())
