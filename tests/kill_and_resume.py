"""Kills a training run at random moments, resumes it, and compares it with a run that was never stopped.

    python tests/kill_and_resume.py                          # 10 kill points each for 0 and 2 workers
    python tests/kill_and_resume.py --points 3 --workers 2 --persistent --accumulation 2 --no-duplicates --seed 7

The model is a tiny BERT with dropout, the batches are planned anew every few steps in mid-epoch, and
checkpoints are frequent. A killed run gets SIGKILL: every second one while it writes a checkpoint, the
others at any moment. The resumed run is another process, which calls `train(resume_from_checkpoint=True)`,
or starts anew where no checkpoint was written to its end. Both have to train on the same rows at every
step as the run that was never stopped, and the weights at the end have to be equal bit by bit.

Runs are forked from one process that has imported everything; at the first `--fresh` kill points they
are new interpreters. Prints a JSON summary; what differs goes to stderr, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Before torch: one thread each, so that sums are in one order and a fork copies no thread pool.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from conftest import make_bert, make_pairs
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.checkpoint import last_whole_checkpoint
from gcbs_st.losses import EMC2Loss, SogCLRLoss

LOSSES = {loss.__name__: loss for loss in (MultipleNegativesRankingLoss, EMC2Loss, SogCLRLoss)}
POLL_SECONDS = 0.001
# A run of these sizes takes seconds. One that takes so long hangs.
TIMEOUT_SECONDS = 180


@dataclass(frozen=True)
class Settings:
    """What the runs that are compared have in common."""

    workers: int = 0
    persistent: bool = False
    accumulation: int = 1
    no_duplicates: bool = False
    planner: str = "gcbs"
    source: str = "encode"
    loss: str = "MultipleNegativesRankingLoss"
    rows: int = 99
    batch_size: int = 8
    epochs: int = 3
    replan_steps: int = 3
    save_steps: int = 4


class TextCollator:
    """The host's collator, whose batches also carry the texts they were made of."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.valid_label_columns = collator.valid_label_columns

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        labels = {*self.valid_label_columns, "dataset_name"}
        texts = [tuple(str(value) for name, value in row.items() if name not in labels) for row in rows]
        return {**self.collator(rows), "texts": texts}


class RecordingTrainer(GCBSTrainer):
    """Keeps the texts of every batch that the model is trained on, in `trained`, as (optimizer step, texts)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = TextCollator(self.data_collator)
        self.trained: list[tuple[int, list[tuple[str, ...]]]] = []

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        self.trained.append((self.state.global_step + 1, inputs.pop("texts")))
        return super().training_step(model, inputs, *args)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop("texts")
        return super().prediction_step(model, inputs, *args, **kwargs)


class ReportingTrainer(RecordingTrainer):
    """Writes what it does to a file, at once, so that it is known also of a killed run."""

    report: int = -1

    def tell(self, **event: Any) -> None:
        os.write(self.report, (json.dumps({**event, "time": time.monotonic()}) + "\n").encode())

    def training_step(self, *args: Any) -> torch.Tensor:
        loss = super().training_step(*args)
        step, texts = self.trained[-1]
        self.tell(event="trained", step=step, texts=texts)
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.tell(event="saving", step=self.state.global_step)
        super()._save_checkpoint(*args, **kwargs)
        self.tell(event="saved", step=self.state.global_step)


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 of all weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def job(model_folder: str, output: Path, report: Path, settings: Settings) -> None:
    """One run, from the start or from the newest whole checkpoint of its folder, to its end."""
    torch.set_num_threads(1)
    model = SentenceTransformer(model_folder, device="cpu")
    args = GCBSTrainingArguments(
        str(output),
        planner=settings.planner,
        embedding_source=settings.source,
        replan_steps=settings.replan_steps,
        batch_sampler="no_duplicates" if settings.no_duplicates else "batch_sampler",
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=1e-3,
        save_steps=settings.save_steps,
        save_total_limit=2,
        dataloader_num_workers=settings.workers,
        dataloader_persistent_workers=settings.persistent and settings.workers > 0,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
    )
    rows = make_pairs(settings.rows)
    if settings.no_duplicates:  # every positive in two or three rows, which a planner puts side by side
        rows = Dataset.from_dict(
            {"anchor": rows["anchor"], "positive": (list(rows["positive"])[:40] * 3)[: len(rows)]}
        )
    trainer = ReportingTrainer(model, args, rows, loss=LOSSES[settings.loss](model))
    trainer.report = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    checkpoint = last_whole_checkpoint(output)
    trainer.tell(event="started", resumed_from=int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0)
    trainer.train(resume_from_checkpoint=checkpoint is not None)
    trainer.tell(event="ended", step=trainer.state.global_step, weights=weights_hash(trainer.model))


class Run:
    """A running job in a process group of its own."""

    def __init__(self, model_folder: str, output: Path, report: Path, settings: Settings, fresh: bool) -> None:
        self.report = report
        log = os.open(report.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if fresh:
            task = json.dumps([model_folder, str(output), str(report), asdict(settings)])
            command = [sys.executable, __file__, "--job", task]
            self.pid = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True).pid
        else:
            self.pid = _fork(model_folder, output, report, settings, log)
        os.close(log)
        self.status: int | None = None

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def kill(self) -> None:
        """SIGKILL, to the process alone; its data workers are swept up after it is dead."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            _, self.status = os.waitpid(self.pid, 0)
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def events(self) -> list[dict[str, Any]]:
        """What the run told so far; the last line may be cut off by a kill."""
        lines = self.report.read_text().split("\n")[:-1] if self.report.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for(self, event: str, step: int) -> bool:
        """Waits until the run tells of the event; False if it ended before."""
        for _ in self._patience():
            if any(told["event"] == event and told["step"] == step for told in self.events() if "step" in told):
                return True
            if self.ended():
                return False
        raise AssertionError("not reached")

    def finish(self) -> list[dict[str, Any]]:
        """Waits for the end; what the run told.

        Raises:
            RuntimeError: it failed; the message holds the end of its output.
        """
        for _ in self._patience():
            if self.ended():
                break
        if self.status != 0:
            raise RuntimeError(f"a run failed:\n{self.report.with_suffix('.log').read_text()[-3000:]}")
        return self.events()

    def _patience(self) -> Iterator[None]:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            yield
            time.sleep(POLL_SECONDS)
        self.kill()
        raise RuntimeError(f"a run took more than {TIMEOUT_SECONDS} seconds:\n{self.report.with_suffix('.log')}")


def _fork(model_folder: str, output: Path, report: Path, settings: Settings, log: int) -> int:
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
        job(model_folder, output, report, settings)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def batches_by_step(events: list[dict[str, Any]]) -> dict[int, list[Any]]:
    """The batches of each optimizer step, in order."""
    batches: dict[int, list[Any]] = {}
    for told in events:
        if told["event"] == "trained":
            batches.setdefault(told["step"], []).append(told["texts"])
    return batches


def differences(whole: list[dict[str, Any]], killed: list[dict[str, Any]], resumed: list[dict[str, Any]]) -> list[str]:
    """What the killed and the resumed run did otherwise than the one that was never stopped; empty if nothing."""
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


def save_seconds(events: list[dict[str, Any]]) -> float:
    """How long a checkpoint takes to write, the median."""
    begun = {told["step"]: told["time"] for told in events if told["event"] == "saving"}
    taken = sorted(told["time"] - begun[told["step"]] for told in events if told["event"] == "saved")
    return taken[len(taken) // 2]


def step_seconds(events: list[dict[str, Any]]) -> float:
    """How long a step takes that saves nothing, about: the median of all."""
    times = [told["time"] for told in events if told["event"] == "trained"]
    gaps = sorted(after - before for before, after in zip(times, times[1:], strict=False))
    return gaps[len(gaps) // 2]


def kill_point(
    model_folder: str, folder: Path, settings: Settings, whole: list[dict[str, Any]], rng: random.Random,
    in_saving: bool, fresh: bool,
) -> dict[str, Any]:  # fmt: skip
    """Kills one run, resumes it, and returns what happened."""
    steps = whole[-1]["step"]
    for attempt in range(5):
        output = folder / f"attempt_{attempt}"
        output.mkdir(parents=True)
        if in_saving:
            event, step = "saving", rng.randrange(settings.save_steps, steps, settings.save_steps)
            delay = rng.uniform(0, 1.1 * save_seconds(whole))
        else:
            event, step = "trained", rng.randrange(1, steps)
            delay = rng.uniform(0, step_seconds(whole))
        run = Run(model_folder, output, folder / f"killed_{attempt}.jsonl", settings, fresh)
        if run.wait_for(event, step):
            time.sleep(delay)
            run.kill()
        if run.status == -signal.SIGKILL or os.WIFSIGNALED(run.status or 0):
            break
    else:
        raise RuntimeError("five runs ended before they could be killed")
    killed = run.events()
    torn = killed[-1]["event"] == "saving"
    resumed = Run(model_folder, output, folder / "resumed.jsonl", settings, fresh).finish()
    return {
        "kill": event,
        "at_step": step,
        "last_step": max(batches_by_step(killed), default=0),
        "died_while_saving": torn,
        "fresh_interpreters": fresh,
        "resumed_from": resumed[0]["resumed_from"],
        "differences": differences(whole, killed, resumed),
    }


def kill_and_resume(settings: Settings, points: int, fresh: int, seed: int) -> dict[str, Any]:
    """Runs once without a stop and `points` times with one; the summary."""
    began, rng = time.monotonic(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kill_and_resume_") as temporary:
        folder = Path(temporary)
        model_folder = make_bert_in_child(folder / "bert")
        (folder / "whole").mkdir()
        whole = Run(model_folder, folder / "whole", folder / "whole.jsonl", settings, fresh=False).finish()
        results = [
            kill_point(model_folder, folder / f"point_{i}", settings, whole, rng, i % 2 == 1, i < fresh)
            for i in range(points)
        ]
    return {
        **asdict(settings),
        "seed": seed,
        "steps": whole[-1]["step"],
        "batches": sum(map(len, batches_by_step(whole).values())),
        "weights": whole[-1]["weights"][:16],
        "points": results,
        "died_while_saving": sum(result["died_while_saving"] for result in results),
        "resumed_from_a_checkpoint": sum(result["resumed_from"] > 0 for result in results),
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


def main() -> int:
    """Reads the command line, runs every number of workers, and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10, help="kill points for each number of workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="data workers")
    parser.add_argument("--persistent", action="store_true", help="keep the workers from epoch to epoch")
    parser.add_argument("--accumulation", type=int, default=1, help="batches an optimizer step")
    parser.add_argument("--no-duplicates", action="store_true", help="keep texts apart that are equal")
    parser.add_argument("--planner", default="gcbs")
    parser.add_argument("--source", default="encode", help="of the embeddings: encode or harvest")
    parser.add_argument("--loss", default="MultipleNegativesRankingLoss", choices=LOSSES)
    parser.add_argument("--fresh", type=int, default=1, help="kill points whose runs are new interpreters")
    parser.add_argument("--seed", type=int, help="of the kill points; default: another one each time")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        model_folder, output, report, settings = json.loads(given.job)
        job(model_folder, Path(output), Path(report), Settings(**settings))
        return 0
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    summaries = []
    for workers in given.workers:
        settings = Settings(
            workers, given.persistent, given.accumulation, given.no_duplicates, given.planner, given.source, given.loss
        )
        summaries.append(kill_and_resume(settings, given.points, given.fresh, seed))
    print(json.dumps(summaries, indent=2))
    for summary in summaries:
        for point in summary["points"]:
            for difference in point["differences"]:
                where = f"{summary['workers']} workers, killed at step {point['last_step']}, seed {seed}"
                print(f"DIFFERENT ({where}): {difference}", file=sys.stderr)
    return 0 if all(summary["ok"] for summary in summaries) else 1


if __name__ == "__main__":
    sys.exit(main())
