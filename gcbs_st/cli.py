"""The program `gcbs-st`.

Each command is a function of a module of `gcbs_st.commands`, imported when it is called.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from gcbs_st import __version__

# Name, module:function, and what it does in one line. A command is added by adding a line.
COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("advise", "advise:main", "say whether composed batches will help on your data, and with which setting"),
    ("train-sts", "train:train_sts", "train sentence embeddings once for each run of a configuration"),
    ("train-code-search", "train:train_code_search", "train code search once for each run of a configuration"),
    ("evaluate-sts", "evaluate:evaluate_sts", "score a model on the STS tasks"),
    ("evaluate-retrieval", "evaluate:evaluate_retrieval", "score a model on retrieval"),
    ("evaluate-code-search", "evaluate:evaluate_code_search", "score a model on code search"),
    ("evaluate-mteb", "evaluate_mteb:main", "score a model through mteb, and keep mteb's result files"),
    ("embed", "embed:main", "write the embeddings of a dataset to two files that plan takes"),
    ("plan", "plan:main", "plan the batches of saved embeddings"),
    ("export", "export:main", "write a plan's batches as Parquet files, for any trainer"),
    ("draw", "draw:main", "draw the similarities in batches, or planners compared"),
    ("compare", "compare:main", "train several ways with several seeds, and compare them in pairs"),
    ("inspect", "inspect:main", "write a page that shows which texts share a batch"),
    ("report", "report:main", "write a report over finished runs"),
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
    """Runs a command, `argv` being its name and arguments; returns the exit code, see `gcbs_st.commands.shell`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        width = max(len(name) for name, _, _ in COMMANDS)
        lines = "\n".join(f"  {name:<{width}}  {words}" for name, _, words in COMMANDS)
        sys.stdout.write(_USAGE.format(commands=lines))
        return 0
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"gcbs-st {__version__}\n")
        return 0
    places = {name: place for name, place, _ in COMMANDS}
    if words[0] not in places:
        sys.stderr.write(
            f"gcbs-st: error: got {words[0]!r}, expected one of {', '.join(places)}; see gcbs-st --help\n"
        )
        return 2
    module, _, function = places[words[0]].partition(":")
    try:
        return int(getattr(importlib.import_module(f"gcbs_st.commands.{module}"), function)(words[1:]))
    except KeyboardInterrupt:  # while the command was imported
        sys.stderr.write("gcbs-st: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
