#!/usr/bin/env python3
"""Time planners, in pairs with plain GCBS and with sentence-transformers' mining of one hard negative per row.

Goes in: embeddings, names of planners. Comes out: seconds, peak memory and what each plan closes of the gap. Each
measurement has a process of its own, so that its peak memory is its own; a small plan beforehand takes the compile
time out of the seconds, and is reported apart.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import describe_machine, parse, run, run_fresh

from gcbs_st.commands.plan import parse_option, peak_bytes
from gcbs_st.commands.shell import make_parser, tell
from gcbs_st.records.tables import markdown_table

PROGRAM = "python scripts/benchmarks/planners.py"
EXAMPLE = """
{program} --anchors A.npy --positives P.npy --planner bisect --planner best --planner best,effort=4
{program} --rows 10000 --rows 100000 --rows 1000000 --planner bisect --no-baselines --json bench.json
"""
BASELINES = ("reference", "mine_hard_negatives")
# Another party's reading of HOBIT: rows of a random pool, and what a contradiction costs in a sum of cosines.
_POOL, _CONTRADICTION = 4096, 10.0
_WARM_ROWS, _WARM_BATCH = 1200, 16
_CHUNK_ROWS = 2048
# Twice as many rows as in the files are as many different rows: what is drawn again is moved by this much.
_NOISE = 0.3
_COLUMNS = {
    "method": "method", "n": "n", "batch_size": "B", "seconds": "seconds", "times_reference": "x reference",
    "peak_bytes": "peak GB", "closed": "closed", "tail_coverage": "tail coverage",
    "false_negatives": "false negatives", "trained_closed": "guarded closed", "masked": "masked",
    "worst_masked": "worst batches", "compile_seconds": "compile s",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, see `gcbs_st.commands.shell`."""
    arguments = parse_arguments(argv)
    return run(PROGRAM, arguments, lambda: run_benchmark(arguments), lambda: run_job(arguments.job))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line; argparse itself exits with code 2 on a mistake."""
    parser = make_parser(PROGRAM, __doc__, EXAMPLE)
    parser.add_argument("--anchors", help="(n, d) .npy, unit rows; without, seeded random clusters of 384 dimensions")
    parser.add_argument("--positives", help="(n, d) .npy; row i is the positive of anchor i")
    parser.add_argument(
        "--planner",
        action="append",
        metavar="NAME[,KEY=VALUE...]",
        help="may be repeated (default: bisect and best); pool_greedy is another party's reading of HOBIT",
    )
    parser.add_argument("--margin", type=float, help="plan and judge as for a loss with this guard")
    parser.add_argument(
        "--rows", action="append", type=int, metavar="N", help="plan N rows, drawn again with noise where needed"
    )
    parser.add_argument("--batch-size", action="append", type=int, metavar="B", help="may be repeated (default: 64)")
    parser.add_argument("--runs", type=int, default=3, help="of each, with seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first run (default: %(default)s)")
    parser.add_argument("--reference", metavar="FILE", help="take reference_order() from this file")
    parser.add_argument("--no-baselines", action="store_true", help="time no reference and no mining")
    parser.add_argument("--sample-rows", type=int, default=4096, help="to judge plans on; 0 for not (default: 4096)")
    arguments = parse(parser, argv)
    arguments.planner = arguments.planner or ["bisect", "best"]
    arguments.batch_size = arguments.batch_size or [64]
    if (arguments.anchors is None) != (arguments.positives is None):
        parser.error("--anchors and --positives go together")
    if arguments.runs < 1:
        parser.error("--runs: expected at least 1")
    return arguments


# ------------------------------------------------------------------ all measurements


def run_benchmark(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields report and table after each round of measurements, with all that was measured so far."""
    results: list[dict[str, Any]] = []
    given = {"seed": arguments.seed, "runs": arguments.runs}
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.rows or [None]:
            files = write_rows(arguments, rows, Path(folder))
            for batch_size in arguments.batch_size:
                for so_far in measure_setting(arguments, files, batch_size):
                    both = [*results, *so_far]
                    report = {**given, "results": both, "exponents": fit_exponents(both)}
                    yield report, make_table(report)
                results += so_far


def measure_setting(
    arguments: argparse.Namespace, files: list[str], batch_size: int
) -> Iterator[list[dict[str, Any]]]:
    """Yields a record for each method after each round of measurements of one batch size."""
    n, d = np.load(files[0], mmap_mode="r").shape
    # Mining takes minutes and knows no batches: once for each number of rows is enough.
    baselines = () if arguments.no_baselines else BASELINES[: 1 if batch_size != arguments.batch_size[0] else 2]
    measured: dict[str, list[dict[str, Any]]] = {method: [] for method in [*baselines, *arguments.planner]}
    # Round by round, so that what else the machine does falls on all methods alike.
    for number in range(arguments.runs):
        for method, records in measured.items():
            job = {"method": method, "files": files, "batch_size": batch_size, "seed": arguments.seed + number}
            records.append(
                measure(job | {key: getattr(arguments, key) for key in ("reference", "sample_rows", "margin")})
            )
            tell(f"B={batch_size} run {number + 1}: {method} {records[-1]['seconds']:.2f} s")
        yield [{"n": n, "d": d, "batch_size": batch_size, **summarize(method, measured)} for method in measured]


def write_rows(arguments: argparse.Namespace, rows: int | None, folder: Path) -> list[str]:
    """Returns two .npy files with as many rows as wanted: the given ones, part of them, or drawn again with noise."""
    if arguments.anchors is None:
        rng = np.random.default_rng(arguments.seed)
        centers = rng.normal(size=(200, 384))
        topics = centers[rng.integers(200, size=20_000)] + 0.8 * rng.normal(size=(20_000, 384))
        sources = [topics + 0.8 * rng.normal(size=topics.shape) for _ in range(2)]
    else:
        if rows is None:
            return [arguments.anchors, arguments.positives]
        sources = [np.load(path, mmap_mode="r") for path in (arguments.anchors, arguments.positives)]
    n, d = sources[0].shape
    files = []
    for name, source in zip(("anchors", "positives"), sources, strict=True):
        files.append(str(folder / f"{name}-{rows}.npy"))
        out = np.lib.format.open_memmap(files[-1], "w+", np.float32, (rows or n, d))
        # One generator for both sides: a row that is drawn again takes its positive along.
        rng = np.random.default_rng(arguments.seed)
        for start in range(0, len(out), n):
            count = min(n, len(out) - start)
            noise = rng.normal(size=(count, d)).astype(np.float32) * (_NOISE if start else 0) / np.sqrt(d)
            block = np.asarray(source[:count], dtype=np.float32)
            block = block / np.linalg.norm(block, axis=1, keepdims=True) + noise
            out[start : start + count] = block / np.linalg.norm(block, axis=1, keepdims=True)
        del out
    return files


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Returns what `run_job` finds in a process of its own."""
    return run_fresh(job["method"], [sys.executable, __file__, "--job", json.dumps(job)])[0]


def summarize(method: str, measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns the medians of a method's runs, its time against the reference run by run, and the runs themselves."""
    runs = measured[method]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    record = {"method": method, **medians, "every_run": runs}
    if "reference" in measured:
        ratios = [run["seconds"] / other["seconds"] for run, other in zip(runs, measured["reference"], strict=True)]
        record |= {"times_reference": statistics.median(ratios), "most_times_reference": max(ratios)}
    return record


def fit_exponents(results: list[dict[str, Any]]) -> dict[str, float]:
    """Returns for each method measured at several n the slope of log seconds over log n, at its first batch size."""
    exponents = {}
    for method in dict.fromkeys(result["method"] for result in results):
        points = {r["n"]: r["seconds"] for r in reversed(results) if r["method"] == method}
        if len(points) > 1:
            slope = np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)[0]
            exponents[method] = round(float(slope), 3)
    return exponents


def make_table(report: dict[str, Any]) -> str:
    """Returns the report as a Markdown table."""
    lines = []
    for result in report["results"]:
        row = result | {"peak_bytes": result["peak_bytes"] / 2**30}
        cells = [row.get(key, "") for key in _COLUMNS]
        lines.append([f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells])
    machine = describe_machine()
    notes = [f"\nMedians of {report['runs']} runs; {machine['cores']} cores; commit {machine['commit']}."]
    notes += [f"Seconds of {name} grow with n to the power of {slope}." for name, slope in report["exponents"].items()]
    return "\n".join([markdown_table(list(_COLUMNS.values()), lines), *notes])


# ------------------------------------------------------------------ one measurement


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Returns seconds, compile seconds, peak bytes and, where there is a plan, quality of one method."""
    from gcbs_st.planners.algorithms.contradictions import Contradictions
    from gcbs_st.planners.quality import plan_quality

    anchors, positives = (np.load(path, mmap_mode="r") for path in job["files"])
    if job["method"] in BASELINES:
        # The baselines have no chunked reading of their own.
        anchors, positives = (np.asarray(array, dtype=np.float32) for array in (anchors, positives))
    margin = job.get("margin")
    method = load_method(job["method"], job["reference"], margin)

    def seconds_of(count: int | None, batch_size: int) -> tuple[float, np.ndarray | None]:
        sides = (anchors, positives) if count is None else (np.asarray(anchors[:count]), np.asarray(positives[:count]))
        began = time.perf_counter()
        order = method(*sides, batch_size, job["seed"])
        return time.perf_counter() - began, order

    first, again = (seconds_of(_WARM_ROWS, _WARM_BATCH)[0] for _ in range(2))
    seconds, order = seconds_of(None, job["batch_size"])
    record = {"compile_seconds": max(0.0, first - again), "seconds": seconds, "peak_bytes": peak_bytes()}
    if order is not None and job["sample_rows"]:
        told = None if margin is None else Contradictions(margin)
        quality = plan_quality(
            anchors, positives, order, job["batch_size"], sample_rows=job["sample_rows"], contradictions=told
        )
        keys = ["closed", "tail_coverage", "false_negatives"]
        keys += [] if told is None else ["trained_closed", "masked", "worst_masked"]
        record |= {key: getattr(quality, key) for key in keys}
    return record


def load_method(
    name: str, reference: str | None, margin: float | None = None
) -> Callable[[np.ndarray, np.ndarray, int, int], np.ndarray | None]:
    """Returns a function of anchors, positives, batch size and seed that gives the order, or None for no plan."""
    if name == "reference":
        find = reference_order
        if reference:
            spec = importlib.util.spec_from_file_location("reference", reference)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            find = lambda anchors, positives: module.reference_order(anchors, positives, 0.999)[0]  # noqa: E731
        return lambda anchors, positives, batch_size, seed: find(anchors, positives)
    if name == "mine_hard_negatives":
        return lambda anchors, positives, batch_size, seed: mine(anchors, positives)
    if name == "pool_greedy":
        return lambda anchors, positives, batch_size, seed: pool_greedy(anchors, positives, batch_size, seed, margin)
    from gcbs_st.planners import make_planner
    from gcbs_st.planners.algorithms.contradictions import Contradictions
    from gcbs_st.planners.base import configured

    planner, *options = name.split(",")
    told = None if margin is None else Contradictions(margin)
    made = configured(make_planner(planner, dict(parse_option(option) for option in options)), contradictions=told)
    return lambda anchors, positives, batch_size, seed: made.plan(
        anchors, positives, batch_size, np.random.default_rng(seed)
    )


def reference_order(anchors: np.ndarray, positives: np.ndarray, quantile: float = 0.999) -> np.ndarray:
    """Returns GCBS's order in the plainest way: what is above one quantile of all products, Cuthill-McKee."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    n = len(anchors)
    drawn = np.arange(n) if n <= 4096 else np.random.default_rng(0).choice(n, 256, replace=False)
    threshold = np.quantile(anchors[drawn] @ positives.T, quantile)
    above = [np.nonzero(anchors[at : at + _CHUNK_ROWS] @ positives.T > threshold) for at in range(0, n, _CHUNK_ROWS)]
    rows = np.concatenate([row + chunk * _CHUNK_ROWS for chunk, (row, _) in enumerate(above)])
    columns = np.concatenate([column for _, column in above])
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(n, n)).tocsr()
    return reverse_cuthill_mckee(graph, symmetric_mode=False)


def pool_greedy(
    anchors: np.ndarray, positives: np.ndarray, batch_size: int, seed: int, margin: float | None
) -> np.ndarray:
    """Returns batches of a random pool's rows, each the one of the highest sum of cosines less contradictions.

    Each pool is used up before the next one is drawn, so that every row is drawn once.
    """
    order = np.random.default_rng(seed).permutation(len(anchors))
    batches = []
    for start in range(0, len(order), _POOL):
        rows = order[start : start + _POOL]
        cosines = anchors[rows].astype(np.float32) @ positives[rows].astype(np.float32).T
        own = cosines.diagonal()
        worth = cosines + cosines.T
        if margin is not None:
            false = cosines > (own - (1 - margin) * np.abs(own))[:, None]
            worth -= _CONTRADICTION * (false | false.T)
        left = np.ones(len(rows), bool)
        while left.any():
            batch = [int(np.argmax(left))]
            left[batch[0]] = False
            total = worth[batch[0]].copy()
            while len(batch) < batch_size and left.any():
                best = int(np.argmax(np.where(left, total, -np.inf)))
                batch.append(best)
                left[best] = False
                total += worth[best]
            batches.append(rows[batch])
    return np.concatenate(batches)


class SavedEmbeddings:
    """What `mine_hard_negatives` asks of a model, answered from arrays: text "a7" is anchor 7, "p7" its positive."""

    device = "cpu"

    def __init__(self, anchors: np.ndarray, positives: np.ndarray) -> None:
        self.sides = {"a": anchors, "p": positives}

    def encode_query(self, texts: list[str], **_: Any) -> np.ndarray:
        """Returns the embeddings of the texts, all of one side."""
        return self.sides[texts[0][0]][[int(text[1:]) for text in texts]]

    encode_document = encode_query

    def get_embedding_dimension(self) -> int:
        """Returns d."""
        return self.sides["a"].shape[1]

    def similarity_pairwise(self, left: Any, right: Any) -> Any:
        """Returns the inner products of the rows."""
        import torch

        return (torch.as_tensor(left) * torch.as_tensor(right)).sum(dim=1)


def mine(anchors: np.ndarray, positives: np.ndarray) -> None:
    """Mines one hard negative per row with sentence-transformers, by faiss, from the embeddings as they are."""
    from datasets import Dataset, disable_progress_bars
    from sentence_transformers.util import mine_hard_negatives

    disable_progress_bars()
    names = [[f"{side}{row}" for row in range(len(anchors))] for side in "ap"]
    pairs = Dataset.from_dict({"anchor": names[0], "positive": names[1]})
    mine_hard_negatives(
        pairs, SavedEmbeddings(anchors, positives), num_negatives=1, range_max=10, use_faiss=True, verbose=False
    )


if __name__ == "__main__":
    sys.exit(main())
