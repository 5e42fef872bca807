"""Several ranks, forked from a process that has imported everything: a launch takes a second and not twenty.

What the ranks run is a function of a module of the tests. That `torch.distributed.run` starts the same programs is
tested by the matrix of what works, and by the runs that are killed.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from light_host import compile_templates_once

# Started once in each process that runs tests; it forks the ranks, and ends with the process that started it.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["sentence_transformers.sentence_transformer.losses", "gcbs_st.training.trainer"])
# What the agent of `torch.distributed.run` tells each rank, beside its number.
_TOLD = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_ranks(work: Callable[..., None], ranks: int, *given: Any, folder: Path, seconds: float = 300) -> None:
    """Calls a function in so many ranks and waits for all; what they print goes to `log_RANK` in the folder.

    One rank is told that it is one, as by `torch.distributed.run`; see `run_alone`.

    Raises:
        AssertionError: one failed, or took too long; the message holds the end of its log.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _run(work, given, [_told(rank, ranks, store.port) for rank in range(ranks)], folder, seconds)


def run_alone(work: Callable[..., None], *given: Any, folder: Path, seconds: float = 300) -> str:
    """Calls a function in a process that knows of no ranks, and returns what it printed; raises as `run_ranks` does."""
    _run(work, given, [_ONE_THREAD], folder, seconds)
    return (folder / "log_0").read_text()


def _run(
    work: Callable[..., None], given: tuple[Any, ...], told: list[dict[str, str]], folder: Path, seconds: float
) -> None:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in _ONE_THREAD.items():
            environment.setenv(name, value)  # for the server, when it is the first launch
        started_by = multiprocessing.get_start_method()
        logs = [folder / f"log_{rank}" for rank in range(len(told))]
        processes = [
            _SERVER.Process(target=_rank, args=(work, given, environ, str(log), started_by))
            for environ, log in zip(told, logs, strict=True)
        ]
        for process in processes:
            process.start()
    try:
        _wait(processes, time.monotonic() + seconds)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    said = "\n".join(f"rank {rank}: {log.read_text()[-3000:]}" for rank, log in enumerate(logs) if log.exists())
    assert [0] * len(told) == codes, said


def _wait(processes: list[Any], deadline: float) -> None:
    """Until all have ended, or one has failed."""
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            return
        time.sleep(0.01)


def _told(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment of a rank."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {**_ONE_THREAD, **_TOLD, **{name: str(number) for name, number in numbers.items()}}


def _rank(work: Callable[..., None], given: tuple[Any, ...], told: dict[str, str], log: str, started_by: str) -> None:
    """One rank, as `torch.distributed.run` would have started it."""
    # By default a child of the server starts data workers through the server, for which all has to be pickled.
    multiprocessing.set_start_method(started_by, force=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(told)
    compile_templates_once()
    gc.freeze()
    try:
        work(*given)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
