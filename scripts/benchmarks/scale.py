#!/usr/bin/env python3
"""Plan more rows than memory is allowed for, and find how time grows with their number.

Goes in: numbers of rows, a memory budget, a planner. Comes out: seconds, peak memory and what is closed of the gap for
each number of rows, of which the smallest is also planned without a budget; the exponent of the seconds. The rows
are seeded random ones of a tree of topics, half precision, in two files that a later run uses again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import describe_machine, parse, run, run_fresh

from gcbs_st.commands.plan import parse_bytes, parse_option, peak_bytes
from gcbs_st.commands.shell import make_parser, tell
from gcbs_st.files import write_json
from gcbs_st.records.tables import markdown_table

PROGRAM = "python scripts/benchmarks/scale.py"
EXAMPLE = """
{program} --folder /data/scale --rows 1000000 --rows 10000000 --memory-budget 4GB
{program} --folder /data/scale --rows 1000000 --planner best --planner partition --in-memory-only
"""
# Rows are drawn block by block, so that the first n are the same whatever their number is.
_BLOCK_ROWS, _TOPICS = 100_000, 64
_WARM_ROWS, _WARM_BATCH = 1200, 16


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, see `gcbs_st.commands.shell`."""
    parser = make_parser(PROGRAM, __doc__, EXAMPLE)
    add = parser.add_argument
    add("--folder", help="where the embeddings are, or are written, and what a plan leaves on disk for its time")
    add("--rows", action="append", type=int, metavar="N", help="may be repeated (default: 1,000,000 and 10,000,000)")
    add("--dimensions", type=int, default=384, metavar="D", help="default: %(default)s")
    add("--batch-size", type=int, default=64, help="rows per batch (default: %(default)s)")
    add("--planner", action="append", metavar="NAME[,KEY=VALUE...]", help="may be repeated (default: bisect)")
    add("--memory-budget", metavar="SIZE", default="4GB", help="bytes of a process (default: %(default)s)")
    add("--in-memory-only", action="store_true", help="plan without a budget")
    add("--seed", type=int, default=0, help="of rows and plans (default: %(default)s)")
    arguments = parse(parser, argv)
    if arguments.job is None and arguments.folder is None:
        parser.error("--folder: expected a folder with room for 2 x N x D half precision numbers")
    arguments.rows = sorted(arguments.rows or [1_000_000, 10_000_000])
    arguments.planner = arguments.planner or ["bisect"]
    return run(PROGRAM, arguments, lambda: measure(arguments), lambda: run_job(arguments.job))


def measure(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields report and table after each plan."""
    files = write_rows(Path(arguments.folder), arguments.rows[-1], arguments.dimensions, arguments.seed)
    budget = parse_bytes(arguments.memory_budget)
    results: list[dict[str, Any]] = []
    for planner in arguments.planner:
        settings = [] if arguments.in_memory_only else [(rows, budget) for rows in arguments.rows]
        settings += [(rows, None) for rows in (arguments.rows if arguments.in_memory_only else arguments.rows[:1])]
        for rows, allowed in settings:
            job = {
                "files": files, "rows": rows, "planner": planner, "memory_budget": allowed, "folder": arguments.folder,
                "batch_size": arguments.batch_size, "seed": arguments.seed,
            }  # fmt: skip
            found = run_fresh(f"{planner} of {rows} rows", [sys.executable, __file__, "--job", json.dumps(job)])[0]
            results.append({key: job[key] for key in ("planner", "rows", "memory_budget", "batch_size")} | found)
            tell(f"{planner} of {rows} rows: {found['seconds']:.1f} s, {found['peak_bytes'] / 1e9:.2f} GB")
            report = {"seed": arguments.seed, "results": results, "exponents": find_exponents(results)}
            yield report, make_table(report)


def write_rows(folder: Path, rows: int, dimensions: int, seed: int) -> list[str]:
    """Returns the paths of two (n, d) float16 .npy files of unit rows, n at least `rows`, written if they are not there."""
    files = [folder / "anchors.npy", folder / "positives.npy"]
    note, wanted = folder / "made_from.json", {"dimensions": dimensions, "seed": seed}
    made = json.loads(note.read_text()) if note.exists() else {"rows": 0}
    if made["rows"] < rows or {**wanted, "rows": made["rows"]} != made:
        folder.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        maps = [np.lib.format.open_memmap(path, "w+", np.float16, (rows, dimensions)) for path in files]
        for start in range(0, rows, _BLOCK_ROWS):
            for array, drawn in zip(maps, draw_pairs(start // _BLOCK_ROWS, dimensions, seed), strict=True):
                array[start : start + _BLOCK_ROWS] = drawn[: rows - start]
        for array in maps:
            array.flush()
        write_json(note, {**wanted, "rows": rows})
    return [str(path) for path in files]


def draw_pairs(block: int, dimensions: int, seed: int) -> list[np.ndarray]:
    """Returns anchors and positives of a block of rows: of a topic of a topic of a topic, 64 of each."""

    def normal(*key_and_shape: Any) -> np.ndarray:
        *key, shape = key_and_shape
        return np.random.default_rng([seed, *key]).standard_normal(shape, np.float32)

    first, second, third = np.random.default_rng([seed, 0, block]).integers(_TOPICS, size=(3, _BLOCK_ROWS))
    rows = normal(1, (_TOPICS, dimensions))[first]
    rows += 0.9 * normal(2, (_TOPICS**2, dimensions))[first * _TOPICS + second]
    rows += 0.8 * normal(3, (_TOPICS**2, dimensions))[second * _TOPICS + third]
    rows += 0.7 * normal(4, block, rows.shape)
    sides = [rows + 0.7 * normal(5 + side, block, rows.shape) for side in range(2)]
    return [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Returns seconds and peak bytes of a plan, and what is estimated that it closes of the gap."""
    from gcbs_st.planners import check_order, make_planner
    from gcbs_st.planners.algorithms.mapped_rows import ReleasedRows
    from gcbs_st.planners.cells import plan_in_cells
    from gcbs_st.planners.estimate import estimate_quality

    name, *options = job["planner"].split(",")
    planner = make_planner(name, dict(parse_option(option) for option in options))
    sides = [np.load(path, mmap_mode="r")[: job["rows"]] for path in job["files"]]
    planner.plan(*(np.array(side[:_WARM_ROWS]) for side in sides), _WARM_BATCH, np.random.default_rng(0))  # compiles
    rng, budget = np.random.default_rng(job["seed"]), job["memory_budget"]
    began, cpu = time.perf_counter(), time.process_time()
    if budget is None:
        order = planner.plan(*sides, job["batch_size"], rng)
    else:
        order = plan_in_cells(
            planner, *sides, job["batch_size"], rng, memory_budget=budget, folder=Path(job["folder"])
        )
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    record = {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak_bytes()}
    check_order(order, job["rows"], name)
    quality = estimate_quality(*map(ReleasedRows, sides), order, job["batch_size"], scale=20.0)  # type: ignore[arg-type]
    return record | {"closed": quality.closed}


def find_exponents(results: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the slope of log seconds over log rows of each planner's runs with a budget, or else without one."""
    found = {}
    for planner in dict.fromkeys(result["planner"] for result in results):
        of_planner = [result for result in results if result["planner"] == planner]
        points = [r for r in of_planner if r["memory_budget"] is not None] or of_planner
        if len(points) > 1:
            logs = np.log([[point["rows"], point["seconds"]] for point in points])
            found[planner] = round(float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0]), 3)
    return found


def make_table(report: dict[str, Any]) -> str:
    """Returns the report as a Markdown table."""
    lines = [
        [
            result["planner"],
            f"{result['rows']:,}",
            "none" if result["memory_budget"] is None else f"{result['memory_budget'] / 1e9:.1f}",
            f"{result['seconds']:.1f}",
            f"{result['cpu_seconds']:.1f}",
            f"{result['peak_bytes'] / 1e9:.2f}",
            f"{result['closed']:.3f}",
        ]
        for result in report["results"]
    ]
    machine = describe_machine()
    notes = [f"\n{machine['cores']} cores; commit {machine['commit']}."]
    notes += [f"Seconds of {name} grow with n to the power of {slope}." for name, slope in report["exponents"].items()]
    header = ["planner", "rows", "budget GB", "seconds", "CPU seconds", "peak GB", "closed"]
    return "\n".join([markdown_table(header, lines), *notes])


if __name__ == "__main__":
    sys.exit(main())
