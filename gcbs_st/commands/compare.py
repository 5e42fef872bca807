"""Train each arm with each seed, and compare them in pairs: scores, seconds, and time to the reference's score.

Writes DIR/ARM/seed-K per run, and DIR/comparison.json, .md and .png; what is finished is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from gcbs_st.commands.shell import add_config_options, make_parser, quieten, run_command, tell

EXAMPLE = """
{program} --config sts_static_multi30k \\
    --planners random,bisect_guard,gcbs@2 --seeds 8 --out runs/compare_static
{program} --config sts_static_multi30k --select \\
    --planners random,bisect --sweep train.learning_rate=1e-3,2e-3 --seeds 2 --out runs/select_static
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st compare") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = make_parser(program, __doc__, EXAMPLE)
    add = parser.add_argument
    add_config_options(parser)
    add("--planners", required=True, help="arms: names of `arms` or `runs`, or planners; ARM@N: N seeds")
    add("--seeds", default="8", help="how many, 1..K, or a list such as 3,5,8 (one seed: 3,)")
    add("--out", required=True, metavar="DIR", help="folder of the comparison")
    add("--reference", default="random", help="the arm that the others are compared with")
    add("--dev-steps", type=int, default=100, help="steps between STS-B dev scores; 0: at the end only")
    add("--select", action="store_true", help="choose a setting for each arm, on STS-B dev alone")
    add("--sweep", action="append", default=[], metavar="KEY=V1,V2", help="with --select: values of a key; repeatable")
    add("--save-models", action="store_true", help="keep each run's trained model")
    arguments = parser.parse_args(argv)
    quieten(verbose=arguments.verbose)
    typed = f"{program} {shlex.join(sys.argv[1:] if argv is None else argv)}"
    return run_command(program, lambda: _compare(arguments, typed), traceback_of_mistakes=arguments.verbose)


def _compare(arguments: argparse.Namespace, typed: str) -> None:
    import datasets
    import transformers

    from gcbs_st.config import load_config
    from gcbs_st.experiments.comparison import Options, compare, parse_arms, parse_seeds, select
    from gcbs_st.records.tables import comparison_report
    from gcbs_st.reports.charts.pictures import draw_comparison

    if not arguments.verbose:
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
    arms, fewer = parse_arms(arguments.planners)
    options = Options(
        out=Path(arguments.out),
        arms=arms,
        fewer=fewer,
        seeds=parse_seeds(arguments.seeds),
        reference=arguments.reference,
        dev_steps=arguments.dev_steps,
        save_models=arguments.save_models,
        command=typed,
        config_file=arguments.config,
    )
    config = load_config(arguments.config, arguments.set)
    # What the host prints while it trains must not get between the caller and the table.
    with contextlib.redirect_stdout(sys.stderr):
        if arguments.select:
            text = select(config, options, arguments.sweep, tell)
        else:
            content = compare(config, options, tell)
            text = comparison_report(content)
            try:
                tell(f"Pictures: {', '.join(map(str, draw_comparison(content, options.out)))}")
            except ImportError as error:
                tell(f"No pictures were drawn: {error}, and run the command again.")
    print(text)
