#!/usr/bin/env python3
"""Time planners, in pairs with plain GCBS and with sentence-transformers' mining of one hard negative a row.

Goes in: embeddings, names of planners. Comes out: seconds, peak memory and what each plan closes of the gap, as
JSON and as a Markdown table. Each measurement has a process of its own, so that its peak memory is its own; a
small plan beforehand takes the compile time out of the seconds, and is reported apart.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gcbs_st.files import write_text
from gcbs_st.records.provenance import commit_of_checkout, version_of

EXAMPLE = """examples:
  python scripts/benchmark_planners.py --anchors A.npy --positives P.npy --planner bisect --planner best --planner best,effort=4
  python scripts/benchmark_planners.py --rows 10000 --rows 100000 --rows 1000000 --planner bisect --no-baselines --json bench.json
"""
BASELINES = ("reference", "mine_hard_negatives")
_WARM_ROWS, _WARM_BATCH = 1200, 16
_CHUNK_ROWS = 2048
# Twice as many rows as in the files are as many different rows: what is drawn again is moved by this much.
_NOISE = 0.3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; None takes those of the process.

    Returns:
        0 on success, 2 on a user's mistake, which is explained in one line on stderr.
    """
    arguments = parse_arguments(argv)
    if arguments.job:
        print(json.dumps(run_job(json.loads(arguments.job))))
        return 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Written after each round: a run that is cut short keeps what it measured.
            for report in run_benchmark(arguments, Path(folder)):
                write_report(report, arguments)
    except (ValueError, OSError) as error:
        print(f"benchmark_planners.py: {error}", file=sys.stderr)
        return 2
    print(make_table(report))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; argparse itself exits with code 2 on a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--anchors", help="(n, d) .npy, unit rows; without, seeded random clusters of 384 dimensions")
    parser.add_argument("--positives", help="(n, d) .npy; row i is the positive of anchor i")
    parser.add_argument(
        "--planner", action="append", metavar="NAME[,KEY=VALUE...]", help="may be repeated (default: bisect and best)"
    )
    parser.add_argument(
        "--rows", action="append", type=int, metavar="N", help="plan so many rows, drawn again with noise where needed"
    )
    parser.add_argument("--batch-size", action="append", type=int, metavar="B", help="may be repeated (default: 64)")
    parser.add_argument("--runs", type=int, default=3, help="of each, with seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first run (default: %(default)s)")
    parser.add_argument("--reference", metavar="FILE", help="take reference_order() from this file")
    parser.add_argument("--no-baselines", action="store_true", help="time no reference and no mining")
    parser.add_argument("--sample-rows", type=int, default=4096, help="to judge plans on; 0 for not (default: 4096)")
    parser.add_argument("--json", metavar="FILE", help="write all measurements here")
    parser.add_argument("--markdown", metavar="FILE", help="write the table here")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.planner = arguments.planner or ["bisect", "best"]
    arguments.batch_size = arguments.batch_size or [64]
    if (arguments.anchors is None) != (arguments.positives is None):
        parser.error("--anchors and --positives go together")
    if arguments.runs < 1:
        parser.error("--runs: expected at least 1")
    return arguments


# ------------------------------------------------------------------ all measurements


def run_benchmark(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the report after each round of measurements: machine, versions, and a record a method.

    Args:
        arguments: Of the command line.
        folder: Where resampled rows are written.

    Yields:
        What goes into the JSON, with all that was measured so far.

    Raises:
        ValueError: a measurement failed; its message.
    """
    results: list[dict[str, Any]] = []
    for rows in arguments.rows or [None]:
        files = write_rows(arguments, rows, folder)
        n, d = np.load(files[0], mmap_mode="r").shape
        for batch_size in arguments.batch_size:
            # Mining takes minutes and knows no batches: once for each number of rows is enough.
            baselines = (
                () if arguments.no_baselines else BASELINES[: 1 if batch_size != arguments.batch_size[0] else 2]
            )
            methods = [*baselines, *arguments.planner]
            measured: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
            # Round by round, so that what else the machine does falls on all methods alike.
            for run in range(arguments.runs):
                for method in methods:
                    job = {"method": method, "files": files, "batch_size": batch_size, "seed": arguments.seed + run}
                    job |= {"reference": arguments.reference, "sample_rows": arguments.sample_rows}
                    measured[method].append(measure(job))
                    seconds = measured[method][-1]["seconds"]
                    print(f"B={batch_size} run {run + 1}: {method} {seconds:.2f} s", file=sys.stderr, flush=True)
                setting = {"n": n, "d": d, "batch_size": batch_size}
                so_far = [*results, *[setting | summarize(method, measured) for method in methods]]
                yield {**describe_machine(), "seed": arguments.seed, "runs": arguments.runs, "results": so_far,
                       "exponents": fit_exponents(so_far)}  # fmt: skip
            results = so_far


def write_report(report: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write the JSON and the table where the command line asks for them."""
    for path, text in ((arguments.json, json.dumps(report, indent=2)), (arguments.markdown, make_table(report))):
        if path:
            write_text(Path(path), text + "\n")


def write_rows(arguments: argparse.Namespace, rows: int | None, folder: Path) -> list[str]:
    """Return two .npy files with as many rows as wanted: the given ones, part of them, or drawn again with noise."""
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
    """Return what one measurement in a process of its own found.

    Args:
        job: Method, files, batch size, seed.

    Returns:
        Seconds, compile seconds, peak bytes, and the plan's quality where there is one.

    Raises:
        ValueError: the process failed.
    """
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"{job['method']}: {done.stderr.strip().splitlines()[-1] if done.stderr else 'killed'}")
    return json.loads(done.stdout.splitlines()[-1])


def summarize(method: str, measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the medians of a method's runs, its time against the reference run by run, and the runs themselves."""
    runs = measured[method]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    record = {"method": method, **medians, "every_run": runs}
    if "reference" in measured:
        ratios = [run["seconds"] / other["seconds"] for run, other in zip(runs, measured["reference"], strict=True)]
        record |= {"times_reference": statistics.median(ratios), "most_times_reference": max(ratios)}
    return record


def fit_exponents(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return for each method measured at several n the slope of log seconds over log n, at its first batch size."""
    exponents = {}
    for method in dict.fromkeys(result["method"] for result in results):
        points = {r["n"]: r["seconds"] for r in reversed(results) if r["method"] == method}
        if len(points) > 1:
            slope = np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)[0]
            exponents[method] = round(float(slope), 3)
    return exponents


def describe_machine() -> dict[str, Any]:
    """Return machine, versions and commit."""
    packages = ("gcbs_st", "numpy", "scipy", "numba", "faiss-cpu", "pymetis", "sentence-transformers")
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return {
        "machine": found.group(1) if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in packages},
        "commit": commit_of_checkout(),
    }


def make_table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    columns = {
        "method": "method", "n": "n", "batch_size": "B", "seconds": "seconds", "times_reference": "x reference",
        "peak_bytes": "peak GB", "closed": "closed", "tail_coverage": "tail coverage",
        "false_negatives": "false negatives", "compile_seconds": "compile s",
    }  # fmt: skip
    lines = [f"| {' | '.join(columns.values())} |", f"|{'---|' * len(columns)}"]
    for result in report["results"]:
        row = {key: value / 2**30 if key == "peak_bytes" else value for key, value in result.items()}
        cells = [row.get(key, "") for key in columns]
        lines.append(f"| {' | '.join(f'{c:.3f}' if isinstance(c, float) else str(c) for c in cells)} |")
    lines += ["", f"Medians of {report['runs']} runs; {report['cores']} cores; commit {report['commit']}."]
    lines += [
        f"Seconds of {method} grow with n to the power of {slope}." for method, slope in report["exponents"].items()
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------ one measurement


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Return seconds, compile seconds, peak bytes and quality of one method."""
    from gcbs_st.planners.quality import plan_quality

    anchors, positives = (np.load(path, mmap_mode="r") for path in job["files"])
    if job["method"] in BASELINES:
        # The baselines have no chunked reading of their own.
        anchors, positives = (np.asarray(array, dtype=np.float32) for array in (anchors, positives))
    method = load_method(job["method"], job["reference"])
    began = time.perf_counter()
    method(np.asarray(anchors[:_WARM_ROWS]), np.asarray(positives[:_WARM_ROWS]), _WARM_BATCH, job["seed"])
    warm = time.perf_counter()
    method(np.asarray(anchors[:_WARM_ROWS]), np.asarray(positives[:_WARM_ROWS]), _WARM_BATCH, job["seed"])
    record = {"compile_seconds": max(0.0, 2 * warm - began - time.perf_counter())}
    began = time.perf_counter()
    order = method(anchors, positives, job["batch_size"], job["seed"])
    record["seconds"] = time.perf_counter() - began
    unit = 1 if sys.platform == "darwin" else 1024
    record["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if order is not None and job["sample_rows"]:
        quality = plan_quality(anchors, positives, order, job["batch_size"], sample_rows=job["sample_rows"])
        record |= {key: getattr(quality, key) for key in ("closed", "tail_coverage", "false_negatives")}
    return record


def load_method(name: str, reference: str | None) -> Callable[[np.ndarray, np.ndarray, int, int], np.ndarray | None]:
    """Return a function of anchors, positives, batch size and seed that gives the order, or None for no plan."""
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
    from plan_batches import parse_option

    from gcbs_st.planners import make_planner

    planner, *options = name.split(",")
    made = make_planner(planner, dict(parse_option(option) for option in options))
    return lambda anchors, positives, batch_size, seed: made.plan(
        anchors, positives, batch_size, np.random.default_rng(seed)
    )


def reference_order(anchors: np.ndarray, positives: np.ndarray, quantile: float = 0.999) -> np.ndarray:
    """Return GCBS's order in the plainest way: what is above one quantile of all products, Cuthill-McKee."""
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


class SavedEmbeddings:
    """What `mine_hard_negatives` asks of a model, answered from arrays: text "a7" is anchor 7, "p7" its positive."""

    device = "cpu"

    def __init__(self, anchors: np.ndarray, positives: np.ndarray) -> None:
        self.sides = {"a": anchors, "p": positives}

    def encode_query(self, texts: list[str], **_: Any) -> np.ndarray:
        """Return the embeddings of the texts, all of one side."""
        return self.sides[texts[0][0]][[int(text[1:]) for text in texts]]

    encode_document = encode_query

    def get_embedding_dimension(self) -> int:
        """Return d."""
        return self.sides["a"].shape[1]

    def similarity_pairwise(self, left: Any, right: Any) -> Any:
        """Return the inner products of the rows."""
        import torch

        return (torch.as_tensor(left) * torch.as_tensor(right)).sum(dim=1)


def mine(anchors: np.ndarray, positives: np.ndarray) -> None:
    """Mine one hard negative a row with sentence-transformers, by faiss, from the embeddings as they are."""
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
