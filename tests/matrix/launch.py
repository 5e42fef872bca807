"""Starts the jobs that run the cases, and collects their records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paths import TESTS, with_modules

from matrix.case import DDP, DDP_RESUME, RESUME, SINGLE, Case

JOB_SECONDS = 1500
Records = dict[tuple[str, str], dict[str, Any]]


def processes_of(case: Case) -> list[int]:
    """The numbers of processes that a case is run by."""
    columns = {1: (SINGLE, RESUME), case.ranks: (DDP, DDP_RESUME)}
    return [ranks for ranks, both in columns.items() if any(case.cells[column].kind != "n/a" for column in both)]


def run_cases(cases: Iterable[Case], folder: Path, processes: Iterable[int] = (1, 2, 3)) -> Records:
    """The record of each cell that was run, by case and column; a job for each number of processes."""
    cases, records = list(cases), Records()
    for ranks in processes:
        waiting = [case.name for case in cases if ranks in processes_of(case)]
        attempt = 0
        while waiting:
            attempt += 1
            own = folder / f"{ranks}_processes_{attempt}"
            ended, told = run_job(waiting, own, ranks)
            done = {name for name in waiting if any(record["case"] == name for record in told)}
            started = [record["case"] for record in told if record["outcome"] == "started"]
            records |= {(r["case"], r["column"]): r for r in told if r["outcome"] != "started"}
            if ended is None:
                break
            # The job ended in this case, which is what is known of it; the others are run by another one.
            broken = started[-1] if started else waiting[0]
            for column in (SINGLE, RESUME) if ranks == 1 else (DDP, DDP_RESUME):
                records.setdefault(
                    (broken, column),
                    {
                        "case": broken,
                        "column": column,
                        "outcome": "failed",
                        "why": f"the job ended: {ended}",
                        "seconds": 0,
                    },
                )
            waiting = [name for name in waiting if name not in done | {broken}]
    return records


def run_job(names: list[str], folder: Path, ranks: int) -> tuple[str | None, list[dict[str, Any]]]:
    """How a job failed, None if it came to its end, and what it wrote down."""
    folder.mkdir(parents=True)
    task, records = folder / "task.json", folder / "records.jsonl"
    task.write_text(json.dumps({"folder": str(folder), "records": str(records), "cases": names}))
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--rdzv_backend=c10d"]
    launcher = [*launcher, "--rdzv_endpoint=127.0.0.1:0"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "matrix.matrix_job", str(task)]
    environment = {**with_modules(dict(os.environ)), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")  # not the user's
    with (folder / "log").open("w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, cwd=TESTS, env=environment)
        try:
            status = job.wait(JOB_SECONDS)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            _end(job)
    told = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    return (None if status == 0 else (folder / "log").read_text()[-3000:]), told


def _end(job: subprocess.Popen[bytes]) -> None:
    """Ends a job that still runs, politely: only then does the launcher end its ranks."""
    if job.poll() is None:
        job.terminate()
        try:
            job.wait(30)
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()
