"""The program `gcbs-st`: a name of a command in, what that command does out.

Each command is a module of `gcbs_st.commands` with `main(argv) -> int`, imported when it is called.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from gcbs_st import __version__

# Name, module, and what it does in one line. A command is added by adding a line.
COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("train-sts", "train_sts", "train sentence embeddings once for each run of a configuration"),
    ("train-code-search", "train_code_search", "train code search once for each run of a configuration"),
    ("evaluate-sts", "evaluate_sts", "score a model on the STS tasks"),
    ("evaluate-code-search", "evaluate_code_search", "score a model on code search"),
    ("evaluate-mteb", "evaluate_mteb", "score a model through mteb, and keep mteb's result files"),
    ("plan", "plan", "plan the batches of saved embeddings"),
    ("draw", "draw", "draw the similarities in batches, or planners compared"),
    ("compare", "compare", "train several ways with several seeds, and compare them in pairs"),
    ("inspect", "inspect", "write a page that shows which texts share a batch"),
    ("report", "report", "write a report over finished runs"),
)
_USAGE = """usage: gcbs-st COMMAND [OPTIONS]

Composes the batches of contrastive training from the model's own embeddings.

commands:
{commands}

  gcbs-st COMMAND --help   options and an example
  gcbs-st --version        the version

exit codes: 0 done; 1 the work ran and something failed; 2 a mistake, explained in one line; 130 interrupted.
GCBS_ST_DEBUG=1 in the environment shows the traceback of a mistake.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the command's name and its arguments; None takes those of the process.

    Returns:
        The exit code; see `gcbs_st.commands.shell`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"gcbs-st {__version__}\n")
        return 0
    modules = {name: module for name, module, _ in COMMANDS}
    if words[0] not in modules:
        sys.stderr.write(
            f"gcbs-st: error: got {words[0]!r}, expected one of {', '.join(modules)}; see gcbs-st --help\n"
        )
        return 2
    try:
        return int(importlib.import_module(f"gcbs_st.commands.{modules[words[0]]}").main(words[1:]))
    except KeyboardInterrupt:  # while the command was imported
        sys.stderr.write("gcbs-st: interrupted\n")
        return 130


def usage() -> str:
    """Returns the list of the commands, one line each."""
    width = max(len(name) for name, _, _ in COMMANDS)
    return _USAGE.format(commands="\n".join(f"  {name:<{width}}  {words}" for name, _, words in COMMANDS))


if __name__ == "__main__":
    sys.exit(main())
