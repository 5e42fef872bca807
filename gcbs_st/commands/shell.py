"""What every command does alike with the shell: its parser, its messages on stderr, its exit code.

Exit codes, which scripts may rely on:

0    what was asked for is done
1    the work ran and something in it failed: a full disk, memory, a defect of this package
2    a mistake in the command, a file or a configuration, explained in one line on stderr
130  interrupted from the keyboard

`GCBS_ST_DEBUG=1` in the environment shows the traceback of a mistake as well.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
# These come from the machine and not from what was typed.
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


def make_parser(program: str, description: str | None, example: str) -> argparse.ArgumentParser:
    """Returns the parser of a command; its `--help` shows an example.

    Args:
        program: how the command is called, such as `gcbs-st plan` or `python scripts/plan_batches.py`.
        description: the docstring of its module, of which the first line is shown.
        example: lines in which `{program}` stands for the program.

    Returns:
        A parser without arguments; it ends the process with code 2 on a mistake.
    """
    lines = "\n".join(f"  {line}" for line in example.strip("\n").replace("{program}", program).split("\n"))
    return argparse.ArgumentParser(
        prog=program,
        description=(description or "").split("\n")[0],
        epilog=f"example:\n{lines}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_command(program: str, work: Callable[[], int | None], *, traceback_of_mistakes: bool = False) -> int:
    """Returns the exit code of a command after doing its work; see the top of this module.

    Args:
        program: that a message begins with.
        work: what the command does. A `ValueError`, `TypeError`, `OSError` or `ImportError` that it raises is a
            mistake of the user's, whose message is shown in one line.
        traceback_of_mistakes: show where it was raised as well, as `GCBS_ST_DEBUG` does.

    Returns:
        What the work returns, 0 for None.
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
        tell(f"{program}: error: {one_line(error)}")
        return FAILED if isinstance(error, OSError) and error.errno in _MACHINE else MISTAKE
    except Exception as error:
        # Not what a user can mend by typing something else: what is needed is where it happened.
        traceback.print_exc()
        tell(f"{program}: failed: {type(error).__name__}: {one_line(error)}")
        return FAILED


def one_line(error: BaseException) -> str:
    r"""Returns an error's message in one line, its type where it has none.

    Args:
        error: any.

    Example:
        >>> one_line(ValueError("two\n   lines")), one_line(ValueError())
        ('two lines', 'ValueError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def tell(line: str) -> None:
    """Writes a line to stderr at once.

    Args:
        line: without its end.
    """
    print(line, file=sys.stderr, flush=True)


def print_scores(score: Callable[[], Mapping[str, float]], *, as_json: bool) -> None:
    """Prints scores on stdout, and nothing else there: what libraries print goes to stderr.

    Args:
        score: gives name -> value.
        as_json: one JSON object instead of a line a score.
    """
    with contextlib.redirect_stdout(sys.stderr):
        scores = score()
    if as_json:
        print(json.dumps(scores))
    else:
        width = max(len(name) for name in scores)
        print("\n".join(f"{name:<{width}}  {value:6.2f}" for name, value in scores.items()))


def quieten_loading() -> None:
    """Silences warnings and bars of a model's loading: they would bury the one line that explains an error."""
    from transformers.utils import logging as transformers_logging

    for library in ("sentence_transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def quieten(*, verbose: bool = False) -> None:
    """Silences what libraries say of themselves: it would bury the one line that matters.

    Args:
        verbose: let them talk.
    """
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    if not verbose:
        for category in (UserWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)


def call_of(command: str) -> str:
    """Returns how a command is called from here, to be pasted into this shell.

    Args:
        command: such as `inspect`.

    Returns:
        `gcbs-st inspect`, with the folder of this Python where the shell would not find it.
    """
    if shutil.which("gcbs-st"):
        return f"gcbs-st {command}"
    # Not resolved: in an environment the link lies beside gcbs-st, the interpreter elsewhere.
    python = Path(os.path.relpath(sys.executable))
    beside = python.with_name("gcbs-st")
    return f"{beside} {command}" if beside.exists() else f"{python} -m gcbs_st.cli {command}"
