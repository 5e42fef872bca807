#!/usr/bin/env python3
"""Write the embeddings of a dataset to two .npy files, of which batches are planned; the same as `gcbs-st embed`."""

import functools
import sys

from gcbs_st.commands import embed

main = functools.partial(embed.main, program="python scripts/embed_rows.py")

if __name__ == "__main__":
    sys.exit(main())
