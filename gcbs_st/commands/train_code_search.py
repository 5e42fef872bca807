"""Train code search once for each run of a configuration, and print one table of what came of it.

Goes in: a YAML file with `evaluation.code_search`. Comes out: a folder a run, a table on stdout, and JSON where asked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gcbs_st.commands.train_sts import train_command

EXAMPLE = """
{program} --config configs/code_search_quickstart.yaml
{program} --config configs/code_search_static.yaml --set train.seed=2 --json results.json
{program} --config configs/cosqa_unixcoder.yaml --dry-run
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st train-code-search") -> int:
    """Runs the command line.

    Args:
        argv: arguments; None takes those of the process.
        program: how the command is called.

    Returns:
        The exit code; see `gcbs_st.commands.shell`.
    """
    return train_command(argv, program=program, description=__doc__, example=EXAMPLE)


if __name__ == "__main__":
    sys.exit(main())
