"""Kills training runs at random moments, resumes them, and compares them with runs that were never stopped.

    python tests/maintain/kill_and_resume.py                          # 10 kill points each for 0 and 2 workers
    python tests/maintain/kill_and_resume.py --points 3 --workers 2 --persistent --accumulation 2 --no-duplicates --seed 7
    python tests/maintain/kill_and_resume.py --points 10 --workers 0 --ranks 2 --datasets proportional
    python tests/maintain/kill_and_resume.py --points 10 --settings all

SIGKILL is sent to one process: every second one while it writes a checkpoint, the others at any moment. With
several ranks it is each one's turn, and the agent of torchrun has to bring the others down. The resumed run is
another process, which calls `train(resume_from_checkpoint=True)`, or starts anew where no checkpoint was written
to its end. Both have to train on the same rows at every step and rank as the run that was never stopped, and the
weights at the end have to be equal bit by bit.

Runs are forked from one process that has imported everything; at the first `--fresh` kill points they
are new interpreters. Prints a JSON summary; what differs goes to stderr, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

# Before torch: one thread each, so that sums are in one order and a fork copies no thread pool.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in (".", "support", "jobs"))

from conftest import make_bert
from killed_job import LOSSES, Settings, Task
from killed_run import Run

SEVERAL_WORKERS = {"workers": 2, "persistent": True, "accumulation": 2}
# The first starts over in each epoch, three times.
BY_WEIGHTS: dict[str, Any] = {"datasets": "proportional", "dataset_weights": {"first": 4, "second": 1}}
NAMED = {
    "1 process": Settings(),
    "1 process, workers": Settings(workers=2),
    "1 process, workers, accumulation": Settings(**SEVERAL_WORKERS),
    "1 process, initial view": Settings(view="initial", hardness=0.6),
    "2 ranks": Settings(ranks=2),
    "2 ranks, initial view": Settings(ranks=2, view="initial", hardness=0.6),
    "2 ranks, harvest": Settings(ranks=2, source="harvest"),
    "2 ranks, workers, accumulation": Settings(ranks=2, **SEVERAL_WORKERS),
    "2 ranks, workers, accumulation, harvest": Settings(ranks=2, source="harvest", **SEVERAL_WORKERS),
    "1 process, stream": Settings(window=32),
    "1 process, stream, initial view": Settings(window=32, view="initial", planner="bisect"),
    "2 ranks, stream": Settings(ranks=2, window=64),
    "2 datasets, round robin": Settings(datasets="round_robin"),
    "2 datasets, proportional": Settings(datasets="proportional", source="harvest"),
    "2 datasets by weights, workers": Settings(workers=2, **BY_WEIGHTS),
    "2 datasets by weights, sub-batches, harvest": Settings(sub_batches=2, source="harvest", **BY_WEIGHTS),
    "2 ranks, 2 datasets by weights, sub-batches": Settings(ranks=2, sub_batches=2, accumulation=2, **BY_WEIGHTS),
    "2 ranks, 2 datasets, round robin": Settings(ranks=2, datasets="round_robin", source="harvest"),
    "2 ranks, 2 datasets, proportional": Settings(ranks=2, datasets="proportional"),
}
Events = list[dict[str, Any]]


def batches_by_step(events: Events) -> dict[int, list[Any]]:
    """The batches of each optimizer step, in order."""
    batches: dict[int, list[Any]] = {}
    for told in events:
        if told["event"] == "trained":
            batches.setdefault(told["step"], []).append(told["texts"])
    return batches


def differences(whole: Events, killed: Events, resumed: Events) -> list[str]:
    """What a rank of the killed and the resumed run did otherwise than the one that was never stopped."""
    expected, before, after = map(batches_by_step, (whole, killed, resumed))
    found = []
    for step, batches in before.items():
        if batches != expected[step][: len(batches)]:
            found.append(f"step {step}: the run that was killed later trained on other rows")
    first = resumed[0]["resumed_from"] + 1
    if sorted(after) != list(range(first, max(expected) + 1)):
        found.append(f"the resumed run trained the steps {sorted(after)}, expected {first} to {max(expected)}")
    for step in sorted(set(after) & set(expected)):
        if after[step] != expected[step]:
            found.append(f"step {step}: the resumed run trained on other rows")
    if resumed[-1]["weights"] != whole[-1]["weights"]:
        found.append("the weights at the end differ")
    return found


def save_seconds(events: Events) -> float:
    """How long a checkpoint takes to write, the median."""
    begun = {told["step"]: told["time"] for told in events if told["event"] == "saving"}
    taken = sorted(told["time"] - begun[told["step"]] for told in events if told["event"] == "saved")
    return taken[len(taken) // 2]


def step_seconds(events: Events) -> float:
    """How long a step takes that saves nothing, about: the median of all."""
    times = [told["time"] for told in events if told["event"] == "trained"]
    gaps = sorted(after - before for before, after in zip(times, times[1:], strict=False))
    return gaps[len(gaps) // 2]


def kill_point(
    start: Task, folder: Path, whole: list[Events], rng: random.Random, rank: int, in_saving: bool, fresh: bool
) -> dict[str, Any]:
    """Kills one rank of a run, resumes it, and returns what happened."""
    settings, steps = start.settings, whole[rank][-1]["step"]
    for attempt in range(5):
        output = folder / f"attempt_{attempt}"
        output.mkdir(parents=True)
        task = replace(start, output=str(output), report=str(folder / f"killed_{attempt}"))
        if in_saving:
            event, step = "saving", rng.randrange(settings.save_steps, steps, settings.save_steps)
            delay = rng.uniform(0, 1.1 * save_seconds(whole[rank]))
        else:
            event, step = "trained", rng.randrange(1, steps)
            delay = rng.uniform(0, step_seconds(whole[rank]))
        run = Run(task, fresh)
        if not run.wait_for(event, step, rank):
            run.finish()
            continue
        time.sleep(delay)
        seconds = run.kill(rank)
        if run.status != 0:
            break
    else:
        raise RuntimeError("five runs ended before they could be killed")
    killed = [run.events(one) for one in range(settings.ranks)]
    resumed = Run(replace(task, report=str(folder / "resumed")), fresh).finish()
    found = [differences(*events) for events in zip(whole, killed, resumed, strict=True)]
    return {
        "kill": event,
        "rank": rank,
        "at_step": step,
        "last_step": max(batches_by_step(killed[rank]), default=0),
        "died_while_saving": killed[rank][-1]["event"] == "saving",
        "brought_down_seconds": round(seconds, 2),
        "fresh_interpreters": fresh,
        "resumed_from": resumed[0][0]["resumed_from"],
        "differences": [f"rank {one}: {text}" for one, texts in enumerate(found) for text in texts],
    }


def kill_and_resume(settings: Settings, points: int, fresh: int, seed: int) -> dict[str, Any]:
    """Runs once without a stop and `points` times with one; the summary."""
    began, rng, ranks = time.monotonic(), random.Random(seed), settings.ranks
    with tempfile.TemporaryDirectory(prefix="kill_and_resume_") as temporary:
        folder = Path(temporary)
        (folder / "whole").mkdir()
        start = Task(settings, make_bert_in_child(folder / "bert"), str(folder / "whole"), str(folder / "report"))
        whole = Run(start, fresh=False).finish()
        if len({events[-1]["weights"] for events in whole}) != 1:
            raise RuntimeError("the ranks of the run that was not stopped ended with different weights")
        results = [
            kill_point(start, folder / f"point_{i}", whole, rng, (i + i // ranks) % ranks, i % 2 == 1, i < fresh)
            for i in range(points)
        ]
    return {
        **asdict(settings),
        "seed": seed,
        "steps": whole[0][-1]["step"],
        "batches": sum(len(batches) for events in whole for batches in batches_by_step(events).values()),
        "weights": whole[0][-1]["weights"][:16],
        "points": results,
        "died_while_saving": sum(result["died_while_saving"] for result in results),
        "resumed_from_a_checkpoint": sum(result["resumed_from"] > 0 for result in results),
        "brought_down_seconds": max((result["brought_down_seconds"] for result in results), default=0.0),
        "ok": not any(result["differences"] for result in results),
        "seconds": round(time.monotonic() - began, 1),
    }


def make_bert_in_child(folder: Path) -> str:
    """Makes the model in a process of its own: the one that forks runs must start no thread."""
    folder.mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            make_bert(folder)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the model could not be made")
    return str(folder / "model")


def describe(settings: Settings) -> str:
    """What is not as in the plain run."""
    default = Settings()
    given = [f"{name}={value}" for name, value in asdict(settings).items() if value != getattr(default, name)]
    return ", ".join(given) or "1 process"


def read_settings(given: argparse.Namespace) -> list[Settings]:
    """Those that were named, or one for each number of workers."""
    if given.settings:
        return [NAMED[name] for name in (NAMED if "all" in given.settings else given.settings)]
    known = {field.name for field in fields(Settings)}
    common = {name: value for name, value in vars(given).items() if name in known and name != "workers"}
    return [Settings(workers=workers, **common) for workers in given.workers]


def main() -> int:
    """Reads the command line, runs all settings, and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10, help="kill points for each setting")
    parser.add_argument("--settings", nargs="+", choices=["all", *NAMED], help="instead of the options that follow")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="data workers, each a setting")
    parser.add_argument("--persistent", action="store_true", help="keep the workers from epoch to epoch")
    parser.add_argument("--accumulation", type=int, default=1, help="batches an optimizer step")
    parser.add_argument("--no-duplicates", action="store_true", help="keep texts apart that are equal")
    parser.add_argument("--planner", default="gcbs")
    parser.add_argument("--source", default="encode", help="of the embeddings: encode or harvest")
    parser.add_argument("--loss", default="MultipleNegativesRankingLoss", choices=LOSSES)
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run")
    parser.add_argument("--datasets", default="", choices=["round_robin", "proportional"], help="two of them")
    parser.add_argument("--fresh", type=int, default=1, help="kill points whose runs are new interpreters")
    parser.add_argument("--seed", type=int, help="of the kill points; default: another one each time")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    summaries = []
    for settings in read_settings(given):
        summaries.append(kill_and_resume(settings, given.points, given.fresh, seed))
        print(f"{describe(settings)}: {summaries[-1]['seconds']} s, ok: {summaries[-1]['ok']}", file=sys.stderr)
    print(json.dumps(summaries, indent=2))
    for settings, summary in zip(read_settings(given), summaries, strict=True):
        for point in summary["points"]:
            for difference in point["differences"]:
                where = f"{describe(settings)}; rank {point['rank']} killed at step {point['last_step']}, seed {seed}"
                print(f"DIFFERENT ({where}): {difference}", file=sys.stderr)
    return 0 if all(summary["ok"] for summary in summaries) else 1


if __name__ == "__main__":
    sys.exit(main())
