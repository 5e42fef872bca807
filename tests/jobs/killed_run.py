"""A running job that can be killed: one process, or several ranks under the agent that torchrun starts them with.

Runs are forked from this process, which must have imported everything and started no thread, or they are new
interpreters (`fresh`), for several ranks by the command line of `torch.distributed.run`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from killed_job import Task, train
from paths import with_modules
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

POLL_SECONDS = 0.001
# A run of these sizes takes seconds. One that takes so long hangs.
TIMEOUT_SECONDS = 180
# The agent gives ranks that do not end when asked to 30 seconds.
BROUGHT_DOWN_SECONDS = 60
RENDEZVOUS = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0"}


class Run:
    """A running job in a process group of its own."""

    def __init__(self, task: Task, fresh: bool) -> None:
        self.task, self.ranks = task, task.settings.ranks
        self.log = Path(f"{task.report}.log")
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if fresh:
            command = [sys.executable, *_launcher(self.ranks), __file__, task.to_json()]
            self.pid = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=with_modules(dict(os.environ))
            ).pid
        else:
            self.pid = _fork((lambda: train(task)) if self.ranks == 1 else (lambda: _launch(task)), log)
        os.close(log)
        self.status: int | None = None

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def kill(self, rank: int) -> float:
        """SIGKILL, to one rank alone; returns how many seconds later all of the run had ended.

        Raises:
            RuntimeError: it had not after `BROUGHT_DOWN_SECONDS`, or a rank was still alive.
        """
        began = time.monotonic()
        pids = self.pids()
        if not self.ended():
            os.kill(pids[rank], signal.SIGKILL)
        while not self.ended() and time.monotonic() < began + BROUGHT_DOWN_SECONDS:
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
        left = [pid for pid in pids if is_alive(pid)]
        ended = self.ended()
        self.sweep()
        if left or not ended:
            raise RuntimeError(
                f"rank {rank} was killed, and {seconds:.0f} seconds later {left or 'the agent'} was alive"
            )
        return seconds

    def sweep(self) -> None:
        """Ends what is left: the agent of a run that hangs, and data workers whose process is dead."""
        for pid in {self.pid, *self.pids()}:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.status is None:
            _, self.status = os.waitpid(self.pid, 0)

    def events(self, rank: int) -> list[dict[str, Any]]:
        """What a rank told so far; the last line may be cut off by a kill."""
        report = self.task.report_of(rank)
        lines = report.read_text().split("\n")[:-1] if report.exists() else []
        return [json.loads(line) for line in lines]

    def pids(self) -> list[int]:
        """Of the ranks that have started."""
        return [told[0]["pid"] for rank in range(self.ranks) if (told := self.events(rank))]

    def wait_for(self, event: str, step: int, rank: int) -> bool:
        """Waits until a rank tells of the event and all have started; False if the run ended before."""
        for _ in self._patience():
            told = any(one["event"] == event and one["step"] == step for one in self.events(rank) if "step" in one)
            if told and len(self.pids()) == self.ranks:
                return True
            if self.ended():
                return False
        raise AssertionError("not reached")

    def finish(self) -> list[list[dict[str, Any]]]:
        """Waits for the end; what each rank told.

        Raises:
            RuntimeError: it failed; the message holds the end of its output.
        """
        for _ in self._patience():
            if self.ended():
                break
        if self.status != 0:
            raise RuntimeError(f"a run failed:\n{self.log.read_text()[-3000:]}")
        return [self.events(rank) for rank in range(self.ranks)]

    def _patience(self) -> Iterator[None]:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            yield
            time.sleep(POLL_SECONDS)
        self.sweep()
        raise RuntimeError(f"a run took more than {TIMEOUT_SECONDS} seconds:\n{self.log.read_text()[-3000:]}")


def is_alive(pid: int) -> bool:
    """Whether there is such a process and it is not only waiting for its parent to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _launcher(ranks: int) -> list[str]:
    if ranks == 1:
        return []
    options = [f"--{name}={value}" for name, value in RENDEZVOUS.items()]
    return ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", *options]


def _launch(task: Task) -> None:
    """What `torch.distributed.run` does, with ranks that are forked and so need not import everything again."""
    config = LaunchConfig(
        1, 1, task.settings.ranks, max_restarts=0, start_method="fork", run_id=Path(task.report).name, **RENDEZVOUS
    )
    elastic_launch(config, train)(task)


def _fork(work: Callable[[], None], log: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    train(Task.from_json(sys.argv[1]))
