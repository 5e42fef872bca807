"""What all commands share: the parser, messages on stderr, and exit codes, which scripts may rely on.

0    what was asked for is done
1    the work ran and something in it failed: a full disk, memory, a defect of this package
2    a mistake in the command, a file or a configuration, explained in one line on stderr
130  interrupted from the keyboard

`GCBS_ST_DEBUG=1` in the environment shows the traceback of a mistake as well.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
# Of the packages that only the commands need; the trainers do without.
_BENCH_MODULES, _BENCH_ADVICE = ("joblib", "yaml"), "; run: pip install 'gcbs_st[bench]'"
# These come from the machine and not from what was typed.
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


def make_parser(program: str, description: str | None, example: str) -> argparse.ArgumentParser:
    """Returns a parser whose `--help` shows the description's first line and an example.

    In the example `{program}` stands for how the command is called, such as `python scripts/plan_batches.py`.
    """
    lines = "\n".join(f"  {line}" for line in example.strip("\n").replace("{program}", program).split("\n"))
    return argparse.ArgumentParser(
        prog=program,
        description=(description or "").split("\n")[0],
        epilog=f"example:\n{lines}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a shortened option would mean another one when there are more
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of all commands that read a configuration."""
    add = parser.add_argument
    add("--config", required=True, help="YAML file, or the name of one of the package, see configs/")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, such as train.seed=1")
    add("--verbose", action="store_true", help="show tracebacks and the libraries' messages")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of all commands that score a model."""
    add = parser.add_argument
    add("--model", required=True, help="hub name or folder, or package:DISTRIBUTION for a packaged model")
    add("--batch-size", type=int, default=128, help="texts per forward pass (default: %(default)s)")
    add("--device", help="e.g. cpu or cuda:0 (default: chosen by the library)")


def run_command(program: str, work: Callable[[], int | None], *, traceback_of_mistakes: bool = False) -> int:
    """Does the work of a command, and returns its exit code: what the work returns, 0 for None.

    A `ValueError`, `TypeError`, `OSError` or `ImportError` is a mistake of the user's, whose message is shown in one
    line, with its traceback if asked for. Messages begin with `program`.
    """
    try:
        return work() or DONE
    except KeyboardInterrupt:
        tell(f"{program}: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`). Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, TypeError, OSError, ImportError) as error:
        if traceback_of_mistakes or os.environ.get("GCBS_ST_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        missing = isinstance(error, ModuleNotFoundError) and error.name in _BENCH_MODULES
        tell(f"{program}: error: {one_line(error)}{_BENCH_ADVICE if missing else ''}")
        return FAILED if isinstance(error, OSError) and error.errno in _MACHINE else MISTAKE
    except Exception as error:
        # Not what a user can mend by typing something else: what is needed is where it happened.
        traceback.print_exc()
        tell(f"{program}: failed: {type(error).__name__}: {one_line(error)}")
        return FAILED


def one_line(error: BaseException) -> str:
    r"""Returns an error's message in one line, its type where it has none.

    >>> one_line(ValueError("two\n   lines")), one_line(ValueError())
    ('two lines', 'ValueError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def tell(line: str) -> None:
    """Writes a line to stderr at once."""
    print(line, file=sys.stderr, flush=True)


def check_model_options(arguments: argparse.Namespace) -> None:
    """Raises a ValueError for a batch size below 1, before anything is loaded."""
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size: got {arguments.batch_size}, expected at least 1")


def open_model(arguments: argparse.Namespace) -> Any:
    """Opens the model of `add_model_options`, without the libraries' warnings and bars: they would bury an error."""
    from transformers.utils import logging as transformers_logging

    from gcbs_st.models import load

    for library in ("sentence_transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return load.open_model(arguments.model, arguments.device)


def quieten(*, verbose: bool = False) -> None:
    """Silences what libraries report, unless verbose: it would bury the one line that matters."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    if not verbose:
        for category in (UserWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)


def call_of(command: str) -> str:
    """Returns how to call a command from this shell: `gcbs-st inspect`, with its folder if it is not on the PATH."""
    if shutil.which("gcbs-st"):
        return f"gcbs-st {command}"
    # Not resolved: in an environment the link lies beside gcbs-st, the interpreter elsewhere.
    python = Path(os.path.relpath(sys.executable))
    beside = python.with_name("gcbs-st")
    return f"{beside} {command}" if beside.exists() else f"{python} -m gcbs_st.cli {command}"
