"""Runs cases one after another in one process, or in each rank of several, and writes a record a cell at once.

    cd tests && python -m matrix.matrix_job TASK.json
    cd tests && python -m torch.distributed.run --nproc_per_node=2 -m matrix.matrix_job TASK.json

A case that fails is recorded, and the next one runs. What ranks tell each other goes through files and not
through collectives: a rank that fails alone would leave the others waiting, so it ends the job, and says so.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.distributed as dist
from light_host import compile_templates_once, spare_what_is_loaded
from recorded import weights_hash

from matrix.case import DDP, DDP_RESUME, RESUME, SINGLE, Case, Place, Run
from matrix.cases import CASES, PLAIN
from matrix.materials import save_models
from matrix.optional import why_unusable
from matrix.oracles import check_equal_weights, check_resumed, check_run
from matrix.recording import recording

RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
# A case takes seconds. One that takes so long hangs, and its stacks are written to stderr.
CASE_SECONDS = 120
# What a rank waits for the others after it is done itself.
WAIT_SECONDS = 60


class AloneError(Exception):
    """A rank failed where another did not."""


class Exchange:
    """What the ranks of one job tell each other, in files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        folder.mkdir(parents=True, exist_ok=True)

    def tell(self, value: Any) -> list[Any]:
        """What each rank told, in the order of the ranks."""
        self.count += 1
        written = self.folder / f"{self.count}.{RANK}.writing"
        written.write_text(json.dumps(value))
        written.rename(self.folder / f"{self.count}.{RANK}")
        files = [self.folder / f"{self.count}.{rank}" for rank in range(RANKS)]
        deadline = time.monotonic() + WAIT_SECONDS
        while not all(file.exists() for file in files):
            if time.monotonic() > deadline:
                missing = [rank for rank, file in enumerate(files) if not file.exists()]
                raise AloneError(f"rank {RANK} waits for ranks {missing}; it itself has {str(value)[-1500:]}")
            time.sleep(0.003)
        return [json.loads(file.read_text()) for file in files]


def attempt(work: Callable[[], Any]) -> tuple[Any, dict[str, str] | None]:
    """What the work gave, and how it failed if it did."""
    try:
        return work(), None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return None, {"type": type(error).__name__, "message": str(error)[:1500], "where": where}


def train(case: Case, place: Place, output: Path, resume: str | None) -> Run:
    """One training from the start or a checkpoint, by a model and trainer made anew."""
    torch.manual_seed(7)
    model = case.model(place)
    trainer_class, arguments_class = recording(case.trainer)
    own = dict(case.arguments(place) if callable(case.arguments) else case.arguments)
    arguments = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "planner": "bisect",
        "replan_steps": 3,
        "save_strategy": "steps",
        "save_steps": case.save_at[place.ranks > 1],
        "logging_steps": 5,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
        **own,
    }
    args = arguments_class(str(output), **arguments)
    given = case.given(place, model)
    rows = given.pop("train_dataset", None) or case.rows()
    loss = given.pop("loss", None) or case.loss(model)
    trainer = trainer_class(given.pop("model", model), args, rows, loss=loss, **given)
    trainer.represent = case.represent
    trainer.planned_columns = case.columns if case.verify else ()
    watched = case.watch(trainer)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    if case.train is not None:
        case.train(trainer, resume)
    else:
        trainer.train(resume_from_checkpoint=resume)
    return Run(case, place, trainer, watched, before)


class Job:
    """The cases of one launch."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.folder = Path(task["folder"])
        self.records = Path(task["records"])
        self.names = task["cases"]
        self.exchange = Exchange(self.folder / "exchange")
        self.plain: Run | None = None
        if RANK == 0:
            save_models(self.folder)
        self.exchange.tell("there are models")

    def record(self, case: Case, column: str, outcome: str, began: float, **detail: Any) -> None:
        """Writes one record, at once."""
        if RANK == 0:
            entry = {
                "case": case.name, "column": column, "outcome": outcome,
                "seconds": round(time.monotonic() - began, 2), **detail,
            }  # fmt: skip
            with self.records.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def together(self, work: Callable[[], Any]) -> tuple[Any, dict[str, str] | None]:
        """The work of all ranks; ends the job if it failed on some and not on others."""
        result, failure = attempt(work)
        failures = self.exchange.tell(failure)
        if any(failures) and not all(failures):
            raise AloneError(f"failed on some ranks alone: {failures}")
        return result, failure

    def run_case(self, case: Case, number: int) -> None:
        """Both columns of a case."""
        columns = (SINGLE, RESUME) if RANKS == 1 else (DDP, DDP_RESUME)
        cells = [case.cells[column] for column in columns]
        place = Place(self.folder / f"case_{number}", self.folder, RANKS)
        if all(cell.kind == "n/a" for cell in cells):
            return
        self.record(case, columns[0], "started", time.monotonic())
        if case.needs and (why := why_unusable(case.needs)):
            for column, cell in zip(columns, cells, strict=True):
                if cell.kind == "n/a":
                    continue
                self.record(case, column, "skipped", time.monotonic(), why=why)
            return
        whole: Run | None = None
        for column, cell in zip(columns, cells, strict=True):
            if cell.kind == "n/a":
                continue
            began = time.monotonic()
            if column in (SINGLE, DDP):
                whole, failure = self.together(lambda: train(case, place, place.folder / "whole", None))
                runs = [whole] if whole is not None else []
            else:
                if cell.kind == "works" and whole is None:
                    self.record(case, column, "failed", began, why="there is no run to be resumed")
                    continue
                whole_folder = place.folder / "whole" if whole is not None else self.plain_run()
                checkpoint = whole_folder / f"checkpoint-{case.save_at[RANKS > 1]}"
                resumed, failure = self.together(
                    lambda c=checkpoint: train(case, place, place.folder / "more", str(c))
                )
                runs = [whole, resumed] if whole is not None and resumed is not None else []
            if failure is not None:
                refused = failure["type"] == cell.error and cell.match in failure["message"] and cell.error
                self.record(case, column, "refused" if refused else "failed", began, why=failure)
                continue
            self.judge(case, column, runs, began)
        shutil.rmtree(place.folder, ignore_errors=True)

    def plain_run(self) -> Path:
        """The folder of a training of pairs, for what is refused before it could make a checkpoint of its own."""
        folder = self.folder / "plain"
        if self.plain is None:
            case = next(case for case in CASES if case.name == PLAIN)
            self.plain, failure = self.together(lambda: train(case, Place(folder, self.folder, RANKS), folder, None))
            assert failure is None, failure
        return folder

    def judge(self, case: Case, column: str, runs: list[Run], began: float) -> None:
        """Checks a training that came to its end, or one that was resumed from it."""
        facts, failure = attempt(
            lambda: [weights_hash(runs[-1].model), runs[-1].trainer.batches(), runs[-1].trainer.plans]
        )
        told = self.exchange.tell([facts, failure])

        def check() -> None:
            assert not any(failure for _, failure in told), [failure for _, failure in told]
            run, hashes = runs[-1], [facts[0] for facts, _ in told]
            run.by_rank = [facts[1] for facts, _ in told]
            run.plans, run.weights = told[0][0][2], hashes[0]
            check_equal_weights(hashes)
            if column in (SINGLE, DDP):
                check_run(run)
                case.check(run)
            elif case.resumed is not None:
                case.resumed(*runs)
            else:
                check_resumed(*runs)

        failures = self.exchange.tell(attempt(check)[1])
        outcome = "failed" if any(failures) else "works"
        self.record(case, column, outcome, began, **({"why": failures} if any(failures) else {}))

    def run(self) -> None:
        """All cases."""
        table = {case.name: case for case in CASES}
        for number, name in enumerate(self.names):
            faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
            self.run_case(table[name], number)
            faulthandler.cancel_dump_traceback_later()


def main() -> None:
    """Runs the cases that a task names."""
    torch.set_num_threads(1)
    compile_templates_once()
    spare_what_is_loaded()
    try:
        Job(json.loads(Path(sys.argv[1]).read_text())).run()
    except AloneError as error:
        print(f"rank {RANK}: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # without waiting for the others, which may never come
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
