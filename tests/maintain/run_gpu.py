"""Runs what needs an accelerator: passes, training in half precision, plans and a resumed run on a device.

    python tests/maintain/run_gpu.py                             # the first CUDA device, some minutes
    python tests/maintain/run_gpu.py --write gpu.md
    python tests/maintain/run_gpu.py --rows 100000 1000000 10000000
    python tests/maintain/run_gpu.py --device cpu --rows 2000    # every check on the CPU, at a small size

Which one of several CUDA devices is used says CUDA_VISIBLE_DEVICES. Nothing is downloaded: models are tiny and random,
and what is planned are planted clusters, half precision as on disk. Prints which device, driver and versions were
used, a table of the checks, and one of bisection by numba on the CPU and by torch on the device. Exit code 1 if a
check fails, 2 if there is no such device.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch: products whose sums are in one order, without which no run on CUDA is repeated bit by bit.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in (".", "support", "jobs"))

import numpy as np
import torch
from conftest import make_bert, make_pairs
from killed_job import LOSSES as PLAIN_LOSSES
from recorded import RecordingTrainer, weights_hash
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import PrinterCallback, TrainerCallback

from gcbs_st import GCBSTrainer, GCBSTrainingArguments
from gcbs_st.embeddings.encode import encode_rows
from gcbs_st.losses import CachedGuardedMultipleNegativesRankingLoss, GuardedMultipleNegativesRankingLoss
from gcbs_st.planners import BisectPlanner
from gcbs_st.planners.algorithms import torch_trees
from gcbs_st.planners.quality import SCALE, plan_quality
from gcbs_st.records.provenance import commit_of_checkout, version_of
from gcbs_st.rows.columns import text_columns

BATCH_SIZE, PLANNED_BATCH, DIMENSIONS = 8, 64, 384
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of unit rows, computed in these precisions.
TOLERANCES = {"float32": 1e-3, "bf16": 3e-2, "fp16": 1e-2}
GUARDED = (GuardedMultipleNegativesRankingLoss, CachedGuardedMultipleNegativesRankingLoss)
LOSSES = PLAIN_LOSSES | {loss.__name__: loss for loss in GUARDED}
PACKAGES = ("torch", "sentence-transformers", "transformers", "accelerate", "numpy", "numba", "gcbs_st")
Check = Callable[[], str]


@dataclass(frozen=True)
class Place:
    """Where the checks run."""

    device: torch.device
    folder: Path
    model: str  # the path of a tiny one without dropout

    @property
    def is_cpu(self) -> bool:
        return self.device.type == "cpu"

    def load(self) -> SentenceTransformer:
        """Returns the model, anew, on the device."""
        return SentenceTransformer(self.model, device=str(self.device))


class Skipped(Exception):  # noqa: N818 - it is no error
    """Says why a check is not done here."""


def is_there(device: torch.device) -> bool:
    """Returns whether this machine has such a device, and torch knows how to use it."""
    if device.type == "cpu":
        return True
    module = getattr(torch, device.type, None)
    return module is not None and hasattr(module, "is_available") and bool(module.is_available())


# ------------------------------------------------------------------ trainings


def arguments(place: Place, name: str, **given: Any) -> GCBSTrainingArguments:
    """Returns arguments of a quiet run on the device."""
    defaults = {
        "per_device_train_batch_size": BATCH_SIZE, "num_train_epochs": 2, "planner": "bisect", "report_to": "none",
        "disable_tqdm": True, "use_cpu": place.is_cpu, "save_strategy": "no", "logging_steps": 1,
        "embedding_source": "encode",
    }  # fmt: skip
    return GCBSTrainingArguments(str(place.folder / name), **{**defaults, **given})


def run(trainer: GCBSTrainer, resume: str | None = None) -> GCBSTrainer:
    """Trains to the end, without a word."""
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@contextmanager
def plans_by_torch(place: Place) -> Iterator[list[torch.device]]:
    """Notes on which device torch grows trees; afterwards it has to have been the one that is trained on, if any."""
    noted: list[torch.device] = []
    original = torch_trees.grow_trees

    def noting(points: torch.Tensor, *rest: Any, **options: Any) -> np.ndarray:
        noted.append(points.device)
        return original(points, *rest, **options)

    torch_trees.grow_trees = noting
    try:
        yield noted
    finally:
        torch_trees.grow_trees = original
    expected = set() if place.is_cpu else {place.device.type}
    assert expected == {device.type for device in noted}, f"torch planned on {noted}, expected {expected or 'none'}"


def plans_of(trainer: GCBSTrainer) -> list[dict[str, Any]]:
    """Returns what was logged of each plan."""
    return [entry for entry in trainer.state.log_history if "gcbs/closed" in entry]


def check_embeddings(place: Place, precision: str) -> str:
    """Embeddings of the device are those of the CPU, up to the precision."""
    rows = make_pairs()
    dtype = _dtype(place, precision)
    columns = text_columns(rows, label_columns=[], prompts=None, dataset_name=None)
    numbers = np.arange(len(rows))
    context = nullcontext if dtype is None else lambda: torch.autocast(place.device.type, dtype)
    found = encode_rows(place.load(), rows, numbers, columns, batch_size=32, autocast=context)
    expected = encode_rows(SentenceTransformer(place.model, device="cpu"), rows, numbers, columns, batch_size=32)
    return _compared(found, expected, precision)


def check_harvest(place: Place, precision: str) -> str:
    """What training leaves of its passes is what the model makes of each row, under the row's own id."""
    _dtype(place, precision)
    given = {} if precision == "float32" else {precision: True}
    rows, model = make_pairs(96), place.load()
    args = arguments(place, "harvest", learning_rate=0.0, weight_decay=0.0, embedding_source="harvest", **given)
    trainer = GCBSTrainer(model, args, rows, loss=MultipleNegativesRankingLoss(model))
    kept: list[list[np.ndarray]] = []

    class Look(TrainerCallback):
        def on_train_end(self, *_: Any, **__: Any) -> None:
            trainer.source.sync()
            kept.append([np.array(array) for array in trainer.source.harvested.stores[""].read(np.arange(len(rows)))])

    trainer.add_callback(Look())
    with plans_by_torch(place):
        run(trainer)
    columns = text_columns(rows, label_columns=[], prompts=None, dataset_name=None)
    numbers = np.arange(len(rows))
    expected = encode_rows(SentenceTransformer(place.model, device="cpu"), rows, numbers, columns, batch_size=32)
    return _compared(kept[0], expected, precision)


def _compared(found: list[np.ndarray], expected: list[np.ndarray], precision: str) -> str:
    assert [array.shape for array in found] == [array.shape for array in expected]
    worst = max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True))
    assert worst <= TOLERANCES[precision], f"{worst:.1e} from the CPU's, expected at most {TOLERANCES[precision]}"
    # The rows differ enough for a wrong one to be seen.
    shifted = min(float(np.abs(np.roll(array, 1, axis=0) - array).max()) for array in expected)
    assert shifted > 3 * TOLERANCES[precision]
    return f"{worst:.1e} from the CPU's in float32"


def _dtype(place: Place, precision: str) -> torch.dtype | None:
    """The type of autocast; a `Skipped` where the host does not train in it."""
    if precision == "fp16" and place.is_cpu:
        raise Skipped("the host does not train in fp16 on a CPU")
    return PRECISIONS[precision]


def check_training(place: Place, precision: str, loss: str) -> str:
    """Steps under autocast on planned batches: the weights move, and neither they nor losses are NaN."""
    dtype, given = _dtype(place, precision), {} if precision == "float32" else {precision: True}
    model = place.load()
    before, seen = weights_hash(model), set()
    watch = model[0].auto_model.encoder.layer[0].register_forward_pre_hook(
        lambda module, args: seen.add((args[0].device.type, torch.is_autocast_enabled(place.device.type)))
    )  # fmt: skip
    args = arguments(place, f"{precision}_{loss}", learning_rate=1e-3, **given)
    with plans_by_torch(place):
        trainer = run(GCBSTrainer(model, args, make_pairs(96), loss=LOSSES[loss](model)))
    watch.remove()
    assert {(place.device.type, dtype is not None)} == seen, f"passes were (device, autocast) {seen}"
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses and np.isfinite(losses).all(), f"losses {losses}"
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters()), "a weight is not finite"
    assert before != weights_hash(model), "no weight moved"
    closed = [entry["gcbs/closed"] for entry in plans_of(trainer)]
    assert len(closed) == 2 and min(closed) > 0.05, f"plans closed {closed}, expected two above 0.05"
    return f"{len(losses)} steps, closed {' '.join(f'{one:.2f}' for one in closed)}"


def check_resumed(place: Place) -> str:
    """A run that goes on from a checkpoint draws the same batches and ends in the same weights, bit by bit."""
    rows, step = make_pairs(96), 17

    def train(name: str, resume: str | None = None) -> RecordingTrainer:
        model = place.load()
        saving = "steps" if resume is None else "no"
        args = arguments(place, name, replan_steps=5, learning_rate=1e-3, save_strategy=saving, save_steps=step)
        return run(RecordingTrainer(model, args, rows, loss=MultipleNegativesRankingLoss(model)), resume)

    torch.use_deterministic_algorithms(True)
    try:
        whole = train("whole")
        resumed = train("resumed", str(place.folder / "whole" / f"checkpoint-{step}"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert [batch for batch in whole.trained if batch[0] > step] == resumed.trained, "other batches were drawn"
    assert weights_hash(whole.model) == weights_hash(resumed.model), "the weights at the end differ"
    return f"{len(resumed.trained)} of {len(whole.trained)} steps again, equal bit by bit"


# ------------------------------------------------------------------ plans


def planted_rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n, 384) unit anchors and positives, half precision: topics within topics, as texts have them."""
    rng = np.random.default_rng(seed)
    wide, narrow = max(2, n // 4096), max(4, n // 256)
    topics = rng.normal(size=(wide, DIMENSIONS))[rng.integers(wide, size=narrow)] + rng.normal(
        size=(narrow, DIMENSIONS)
    )
    sides = [np.empty((n, DIMENSIONS), np.float16) for _ in "ap"]
    for start in range(0, n, 65536):
        count = min(65536, n - start)
        center = topics[rng.integers(narrow, size=count)] + rng.normal(size=(count, DIMENSIONS))
        for side in sides:
            rows = center + 0.5 * rng.normal(size=center.shape)
            side[start : start + count] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return sides[0], sides[1]


def mean_loss(anchors: np.ndarray, positives: np.ndarray, order: np.ndarray) -> float:
    """Returns the mean loss of all anchors within their batches: closed is a multiple of it, and a sample's is not."""
    batches, total = order.reshape(-1, PLANNED_BATCH), 0.0
    for chunk in np.array_split(batches, max(1, len(batches) // 128)):
        scores = SCALE * anchors[chunk].astype(np.float32) @ positives[chunk].astype(np.float32).transpose(0, 2, 1)
        total += float((np.log(np.exp(scores).sum(axis=2)) - np.einsum("bii->bi", scores)).sum())
    return total / order.size


def plan_by_torch(anchors: np.ndarray, positives: np.ndarray, device: str) -> tuple[np.ndarray, float, float]:
    """Returns the order that torch finds, and the seconds of projecting and of growing the trees."""
    rng, began = np.random.default_rng(0), time.perf_counter()
    points = torch_trees.project_pairs(anchors, positives, np.arange(len(anchors)), rng, device)
    points[-1].cpu()  # waits for the device
    projected = time.perf_counter()
    order = torch_trees.grow_trees(points, PLANNED_BATCH, rng, trees=BisectPlanner().trees)
    return order, projected - began, time.perf_counter() - projected


def measure_plans(place: Place, n: int) -> dict[str, Any]:
    """Returns what bisection takes and closes on n rows, by numba on the CPU and by torch on the device."""
    n = n // PLANNED_BATCH * PLANNED_BATCH
    anchors, positives = planted_rows(n)
    device = str(place.device)
    for plan in (plan_by_torch, plan_by_numba):  # compiles, and loads what is loaded once
        plan(anchors[:1024], positives[:1024], device)
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    order, projecting, growing = plan_by_torch(anchors, positives, device)
    peak = torch.cuda.max_memory_allocated() / 1e9 if place.device.type == "cuda" else None
    again = plan_by_torch(anchors, positives, device)[0]
    by_numba, seconds, _ = plan_by_numba(anchors, positives, device)
    random = np.random.default_rng(1).permutation(n)
    limits = plan_quality(anchors, positives, random, PLANNED_BATCH, sample_rows=1024)
    losses = [mean_loss(anchors, positives, one) for one in (random, by_numba, order)]
    closed = [(loss - losses[0]) / (limits.gap_random - limits.gap_limit) for loss in losses[1:]]
    return {
        "rows": n, "numba_seconds": seconds, "torch_seconds": projecting + growing, "trees_seconds": growing,
        "peak_gb": peak, "closed_numba": closed[0], "closed_torch": closed[1],
        "complete": bool(np.array_equal(np.sort(order), np.arange(n))), "same_again": bool(np.array_equal(order, again)),
    }  # fmt: skip


def plan_by_numba(anchors: np.ndarray, positives: np.ndarray, _: str) -> tuple[np.ndarray, float, float]:
    """Returns the order that numba finds, and its seconds."""
    began = time.perf_counter()
    order = BisectPlanner(device="cpu").plan(anchors, positives, PLANNED_BATCH, np.random.default_rng(0))
    return order, time.perf_counter() - began, 0.0


def check_plans(place: Place, n: int, measured: list[dict[str, Any]]) -> str:
    """The device's plan holds every row once, is the same twice, and closes what the CPU's does; notes the figures."""
    found = measure_plans(place, n)
    measured.append(found)
    assert found["complete"], "a row is missing"
    assert found["same_again"], "the same seed gave another plan"
    # Of few rows two plans differ by chance.
    allowed = 0.01 + n**-0.5
    assert found["closed_torch"] >= found["closed_numba"] - allowed, (
        f"closed {found['closed_torch']:.3f}, numba {found['closed_numba']:.3f}"
    )
    return f"closed {found['closed_torch']:.3f}, numba {found['closed_numba']:.3f}"


# ------------------------------------------------------------------ the report


def make_checks(place: Place, rows: list[int], measured: list[dict[str, Any]]) -> Iterator[tuple[str, Check]]:
    """Yields the checks by name."""
    for precision in PRECISIONS:
        yield f"embeddings, {precision}", lambda one=precision: check_embeddings(place, one)
        yield f"harvest, {precision}", lambda one=precision: check_harvest(place, one)
        for loss in LOSSES:
            yield f"{loss}, {precision}", lambda one=precision, name=loss: check_training(place, one, name)
    yield "resumed run", lambda: check_resumed(place)
    for n in rows:
        yield f"bisect, {n:,} rows", lambda count=n: check_plans(place, count, measured)


def perform(check: Check) -> tuple[str, str, float]:
    """Returns what became of a check ("ok", "skipped" or "FAILED"), what it says, and its seconds."""
    began = time.perf_counter()
    try:
        verdict, text = "ok", check()
    except Skipped as why:
        verdict, text = "skipped", str(why)
    except Exception as error:  # noqa: BLE001 - one that fails should not hide what the others find
        traceback.print_exc()
        verdict, text = "FAILED", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".replace("|", "\\|")
    return verdict, text, time.perf_counter() - began


def describe(device: torch.device) -> str:
    """Returns which device, driver and versions are used."""
    versions = ", ".join(f"{name} {version_of(name)}" for name in PACKAGES)
    where = f"{platform.machine()} with {os.cpu_count()} cores"
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        where = (
            f"{facts.name} with {facts.total_memory / 2**30:.0f} GiB (driver {driver_version()}, CUDA "
            f"{torch.version.cuda or torch.version.hip}), beside {where}"
        )
    elif device.type != "cpu":
        where = f"{device.type} device, beside {where}"
    return f"Run on {where}; Python {platform.python_version()}, {versions}; commit {commit_of_checkout()}."


def driver_version() -> str:
    """Returns the version of NVIDIA's driver, "unknown" where its program is not there."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_tables(results: list[tuple[str, str, str, float]], measured: list[dict[str, Any]]) -> str:
    """Returns both tables in markdown."""
    lines = ["| check | | found | seconds |", "|---|---|---|--:|"]
    lines += [f"| {name} | {verdict} | {text} | {seconds:.1f} |" for name, verdict, text, seconds in results]
    if measured:
        lines += [
            "",
            f"`bisect` in batches of {PLANNED_BATCH}, {DIMENSIONS} dimensions in half precision, seconds of one plan:",
            "",
            "| rows | numba on the CPU | torch on the device | of it the trees | device's peak GB | closed, numba | closed, torch |",
            "|--:|--:|--:|--:|--:|--:|--:|",
        ]
    for one in measured:
        peak = "" if one["peak_gb"] is None else f"{one['peak_gb']:.2f}"
        lines.append(
            f"| {one['rows']:,} | {one['numba_seconds']:.2f} | {one['torch_seconds']:.2f} | {one['trees_seconds']:.2f} | "
            f"{peak} | {one['closed_numba']:.3f} | {one['closed_torch']:.3f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Reads the command line, performs the checks, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "xpu", "npu", "cpu"], help="what to run on")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="that are planned, each in turn"
    )
    parser.add_argument("--only", help="checks with this in their names; default: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write what was found here, in markdown")
    given = parser.parse_args(argv)
    if given.device == "cuda":  # one of several: the host would split batches between all that it sees
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    device = torch.device(given.device)
    if not is_there(device):
        print(f"torch {torch.__version__} finds no {given.device} device here, so nothing was run.", file=sys.stderr)
        return 2
    head, results, measured = describe(device), [], []
    print(head)
    with tempfile.TemporaryDirectory(prefix="run_gpu_") as temporary:
        folder = Path(temporary)
        place = Place(device, folder, make_bert(folder, dropout=0.0))
        for name, check in make_checks(place, given.rows, measured):
            if given.only is None or given.only in name:
                results.append((name, *perform(check)))
                print(*results[-1][:3], sep=" | ", flush=True)
    text = f"{head}\n\n{write_tables(results, measured)}"
    print(f"\n{write_tables(results, measured)}")
    if given.write:
        given.write.write_text(text + "\n")
    # Where nothing was to be run nothing was found to be right.
    return 1 if not results or any(verdict == "FAILED" for _, verdict, _, _ in results) else 0


if __name__ == "__main__":
    sys.exit(main())
