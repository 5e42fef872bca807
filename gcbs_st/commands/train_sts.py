"""Train sentence embeddings once for each run of a configuration, and print one table of what came of it.

Goes in: a YAML file. Comes out: a folder a run, a table on stdout, and JSON where asked.
"""

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

from gcbs_st.commands.shell import call_of, make_parser, quieten, run_command

EXAMPLE = """
{program} --config configs/quickstart.yaml
{program} --config configs/quickstart.yaml --set train.learning_rate=0.001 --json results.json
{program} --config configs/simcse_sup_bert_base.yaml --dry-run
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st train-sts") -> int:
    """Runs the command line.

    Args:
        argv: arguments; None takes those of the process.
        program: how the command is called.

    Returns:
        The exit code; see `gcbs_st.commands.shell`.
    """
    return train_command(argv, program=program, description=__doc__, example=EXAMPLE)


def train_command(argv: Sequence[str] | None, *, program: str, description: str | None, example: str) -> int:
    """Runs a command that trains what a configuration says, whatever its models are scored on.

    Args:
        argv: arguments; None takes those of the process.
        program: how the command is called.
        description: what it does.
        example: see `gcbs_st.commands.shell.make_parser`.

    Returns:
        The exit code.
    """
    parser = make_parser(program, description, example)
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, such as train.seed=1"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the records there")
    parser.add_argument("--resume", action="store_true", help="keep finished runs and go on with an interrupted one")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything on a tiny random model without network, take two steps a run, and say what the full run "
        "would download and cost",
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and the libraries' messages")
    arguments = parser.parse_args(argv)
    quieten(verbose=arguments.verbose)
    return run_command(program, lambda: _train(arguments), traceback_of_mistakes=arguments.verbose)


def _train(arguments: argparse.Namespace) -> None:
    if arguments.dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by the hub's library when it is imported
    began = time.perf_counter()
    # After the arguments: the libraries take seconds to import, and --help should not.
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
    """Returns the commands that show what was trained, to be pasted into this shell.

    Args:
        records: of the runs by name, and "before".
        output: the folder of the runs.

    Returns:
        Two lines: the page of the last run that made plans, or of the last run, and the report over all.
    """
    runs = [name for name in records if name != "before"]
    run = next((name for name in reversed(runs) if records[name].get("plans")), runs[-1])
    folder = shlex.quote(str(output / run))
    page, report = (shlex.quote(str(output / name)) for name in ("batches.html", "report"))
    return (
        f"See which texts trained together: {call_of('inspect')} --run {folder} --out {page}\n"
        f"See the runs side by side:        {call_of('report')} {shlex.quote(str(output))} --out {report}"
    )


if __name__ == "__main__":
    sys.exit(main())
