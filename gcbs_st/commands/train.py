"""Trains once for each run of a configuration, writes a folder per run, and prints one table of what came of it."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gcbs_st.commands.shell import add_config_options, call_of, make_parser, quieten, run_command

STS = "Train sentence embeddings once for each run of a configuration, and print one table of what came of it."
STS_EXAMPLE = """
{program} --config quickstart
{program} --config quickstart --set train.learning_rate=0.001 --json results.json
{program} --config papers/simcse_sup_bert_base --dry-run
"""
CODE_SEARCH = "Train code search once for each run of a configuration, and print one table of what came of it."
CODE_SEARCH_EXAMPLE = """
{program} --config code_search_quickstart
{program} --config code_search_static --set train.seed=2 --json results.json
{program} --config papers/cosqa_unixcoder --dry-run
"""


def train_sts(argv: Sequence[str] | None = None, *, program: str = "gcbs-st train-sts") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    return _main(argv, program, STS, STS_EXAMPLE)


def train_code_search(argv: Sequence[str] | None = None, *, program: str = "gcbs-st train-code-search") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    return _main(argv, program, CODE_SEARCH, CODE_SEARCH_EXAMPLE)


def _main(argv: Sequence[str] | None, program: str, description: str, example: str) -> int:
    parser = make_parser(program, description, example)
    add_config_options(parser)
    add = parser.add_argument
    add("--json", metavar="FILE", help="also write the records there")
    add("--resume", action="store_true", help="keep finished runs and go on with an interrupted one")
    add(
        "--dry-run",
        action="store_true",
        help="two steps per run with a tiny random model, offline; tells the full cost",
    )
    arguments = parser.parse_args(argv)
    quieten(verbose=arguments.verbose)
    return run_command(program, lambda: _train(arguments), traceback_of_mistakes=arguments.verbose)


def _train(arguments: argparse.Namespace) -> None:
    if arguments.dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by the hub's library when it is imported
    began = time.perf_counter()
    from gcbs_st.config import load_config
    from gcbs_st.experiments.experiment import run_experiment
    from gcbs_st.files import write_json
    from gcbs_st.records.tables import experiment_table

    config = load_config(arguments.config, arguments.set)
    # What the host prints while it trains must not get between the caller and the table.
    if arguments.dry_run:
        from gcbs_st.experiments.dry_run import dry_run

        with contextlib.redirect_stdout(sys.stderr):
            report = dry_run(config)
        print(f"{report}\n\n{time.perf_counter() - began:.0f} seconds in all; nothing was kept or downloaded.")
        return
    with contextlib.redirect_stdout(sys.stderr):
        records = run_experiment(config, resume=arguments.resume)
    if arguments.json:
        write_json(Path(arguments.json), records)
    print(experiment_table(records))
    print(f"\n{time.perf_counter() - began:.0f} seconds in all; models and results are in {config.output}/")
    print(next_steps(records, Path(config.output)))


def next_steps(records: Mapping[str, Mapping[str, Any]], output: Path) -> str:
    """Returns commands to paste into this shell, for runs in the folder `output`.

    The first shows the batches of the last run that made plans (or of the last run), the second reports on all runs.
    """
    runs = [name for name in records if name != "before"]
    run = next((name for name in reversed(runs) if records[name].get("plans")), runs[-1])
    folder = shlex.quote(str(output / run))
    page, report = (shlex.quote(str(output / name)) for name in ("batches.html", "report"))
    return (
        f"See which texts trained together: {call_of('inspect')} --run {folder} --out {page}\n"
        f"See the runs side by side:        {call_of('report')} {shlex.quote(str(output))} --out {report}"
    )
