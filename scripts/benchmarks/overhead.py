#!/usr/bin/env python3
"""Time what planned batches cost: whole runs, in pairs with random batches, and what their plans are worth.

Goes in: a setting (a transformer, a static model, several ranks, or the store alone). Comes out: wall time against
random batches, and what each epoch's plan closes of the gap on freshly encoded rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import COLUMNS, MODEL, median, parse, run, run_fresh, train

from gcbs_st.commands.shell import make_parser, tell
from gcbs_st.records.tables import markdown_table

PROGRAM = "python scripts/benchmarks/overhead.py"
EXAMPLE = """
{program} --setting transformer --pairs $GCBS_ST_DATA/pairs/multi30k.jsonl.gz --json overhead.json
{program} --setting static --pairs pairs.jsonl.gz --rounds 5
{program} --setting transformer --pairs pairs.jsonl.gz --together --no-quality
{program} --setting store --rows 1000000
{program} --setting ranks --pairs pairs.jsonl.gz
"""
EPOCHS = 3
# Rows, batch size and learning rate of a run.
SETTINGS: dict[str, dict[str, Any]] = {
    "transformer": {"rows": 6400, "batch_size": 64, "learning_rate": 5e-5, "bf16": True},
    "static": {"rows": 58000, "batch_size": 256, "learning_rate": 1e-3, "bf16": False},
}
ARMS: dict[str, dict[str, Any]] = {
    "random": {"planner": "random"},
    "harvest, first random": {"embedding_source": "harvest", "first_plan": "random"},
    "harvest, first encode": {"embedding_source": "harvest", "first_plan": "encode"},
    # Rows harvested longer ago than that share of an epoch are encoded before a plan.
    "harvest, half encoded": {"embedding_source": "harvest", "first_plan": "random", "max_age_epochs": 0.5},
    "harvest, quarter encoded": {"embedding_source": "harvest", "first_plan": "random", "max_age_epochs": 0.75},
    "encode": {"embedding_source": "encode"},
}
RANKS, RANKS_BATCH, RANKS_PLANNERS = (1, 2, 3), 64, ("bisect", "partition", "best")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, see `gcbs_st.commands.shell`."""
    arguments = parse_arguments(argv)
    measure = {"store": measure_store, "ranks": measure_ranks}.get(arguments.setting, measure_runs)
    job = run_rank if arguments.setting == "ranks" else run_job
    return run(PROGRAM, arguments, lambda: measure(arguments), lambda: job(arguments))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line; argparse itself exits with code 2 on a mistake."""
    parser = make_parser(PROGRAM, __doc__, EXAMPLE)
    parser.add_argument("--setting", choices=[*SETTINGS, "store", "ranks"], required=True)
    parser.add_argument("--pairs", help="file with the columns anchor and positive")
    parser.add_argument("--model", default=MODEL, help="(default: %(default)s)")
    parser.add_argument("--planner", default="bisect", help="of all arms but random (default: %(default)s)")
    parser.add_argument("--arm", action="append", choices=[*ARMS], help="may be repeated (default: all)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of all arms one after the other; 0 for no times (default: %(default)s)"
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="each arm at the same time as random batches, one core each, which they swap every round: both meet the "
        "same noise of a shared machine",
    )
    parser.add_argument("--rows", type=int, help="instead of the setting's own number (store: 1,000,000)")
    parser.add_argument("--no-quality", action="store_true", help="do not measure what the plans close")
    arguments = parse(parser, argv)
    if arguments.setting != "store" and not arguments.pairs:
        parser.error(f"--setting {arguments.setting} needs --pairs")
    if arguments.rounds < 0:
        parser.error("--rounds: expected 0 or more")
    # A job is this command once more, with `--job`.
    arguments.command = [__file__, *(sys.argv[1:] if argv is None else argv)]
    return arguments


def load_rows(arguments: argparse.Namespace) -> Any:
    """Returns the training rows, as many as the setting or the command line says."""
    from gcbs_st.corpora.corpus import load_corpus

    setting = SETTINGS.get(arguments.setting, SETTINGS["static"])
    return load_corpus(arguments.pairs, columns=COLUMNS, max_rows=arguments.rows or setting["rows"])


# ------------------------------------------------------------------ runs


def measure_runs(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the wall time of each arm's runs and what its plans close; before that, the runs so far."""
    from gcbs_st.rows.training_set import corpus_hash

    rows = load_rows(arguments)
    arms = ["random", *[name for name in arguments.arm or ARMS if name != "random"]]
    warm_up(arguments, rows)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for number in range(arguments.rounds):
        for name in arms[1:] if arguments.together else arms:
            if arguments.together:
                record, beside = run_together(arguments, name, number)
                runs["random"].append(beside)
            else:
                record = run_once(arguments, rows, name, seed=number)
                beside = record if name == "random" else runs["random"][number]
            ratios = {f"{key}_times_random": record[key] / beside[key] for key in ("seconds", "cpu_seconds")}
            runs[name].append(record | ratios)
            tell(f"round {number + 1}: {name} {record['seconds']:.1f} s, {ratios}")
            yield {"unfinished": True, "every_run": runs}, ""
    judged = [] if arguments.no_quality else arms[1:]
    plans = {name: run_once(arguments, rows, name, seed=0, judge=True)["plans"] for name in judged}
    results = {
        name: {
            "seconds": median(record["seconds"] for record in runs[name]),
            "times_random": median(record.get("seconds_times_random", 1.0) for record in runs[name]),
            "cpu_times_random": median(record.get("cpu_seconds_times_random", 1.0) for record in runs[name]),
            "every_run": runs[name],
            "plans": plans.get(name),
        }
        for name in arms
    }
    report = {
        "setting": arguments.setting, **SETTINGS[arguments.setting], "rows": len(rows), "epochs": EPOCHS,
        "planner": arguments.planner, "rounds": arguments.rounds, "together": arguments.together,
        "corpus_hash": corpus_hash(rows), "results": results,
    }  # fmt: skip
    yield report, make_table(report)


def run_together(arguments: argparse.Namespace, name: str, number: int) -> list[dict[str, Any]]:
    """Returns one run of an arm and the one of random batches at the same time, each on one core and one thread.

    The number of the round is the seed of both, and decides which of them gets which core.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise ValueError("--together needs two cores; this process may use one. Leave it out to run them in turn.")
    commands = []
    for place, arm in enumerate((name, "random")):
        job = {"arm": arm, "seed": number, "core": cores[(place + number) % 2]}
        commands.append([sys.executable, *arguments.command, "--job", json.dumps(job)])
    return run_fresh("a run failed", *commands, environment={"OMP_NUM_THREADS": "1"})


def run_job(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns one run of an arm, on one core."""
    os.sched_setaffinity(0, {arguments.job["core"]})
    rows = load_rows(arguments)
    warm_up(arguments, rows)
    return run_once(arguments, rows, arguments.job["arm"], seed=arguments.job["seed"])


def warm_up(arguments: argparse.Namespace, rows: Any) -> None:
    """Compiles planners and loads libraries, which the first run would pay for."""
    few = rows.select(range(min(len(rows), 6 * SETTINGS[arguments.setting]["batch_size"])))
    for name in ("random", "harvest, first encode"):
        run_once(arguments, few, name, seed=0)


def run_once(arguments: argparse.Namespace, rows: Any, name: str, *, seed: int, judge: bool = False) -> dict[str, Any]:
    """Returns the seconds of one run, and the log entries of its plans.

    `judge` also plans from freshly encoded rows at each plan, and scores both plans on these. That takes time.
    """
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from gcbs_st.models.load import load_model

    setting = SETTINGS[arguments.setting]
    torch.manual_seed(seed)
    model = load_model(arguments.model, static=arguments.setting == "static")
    given = {"planner": arguments.planner, **ARMS[name]}
    if share := given.pop("max_age_epochs", None):
        given["embedding_max_age"] = int(share * (len(rows) // setting["batch_size"]))
    trainer, seconds, cpu_seconds = train(
        model, rows, MultipleNegativesRankingLoss(model), prepare=judge_plans if judge else None, **given,
        num_train_epochs=EPOCHS, seed=seed, per_device_train_batch_size=setting["batch_size"],
        per_device_eval_batch_size=256, learning_rate=setting["learning_rate"], bf16=setting["bf16"],
        use_cpu=not torch.accelerator.is_available(), logging_steps=50,
    )  # fmt: skip
    plans = [
        {key.removeprefix("gcbs/"): value for key, value in entry.items() if key.startswith("gcbs/") or key == "epoch"}
        for entry in trainer.state.log_history
        if "gcbs/gap" in entry
    ]
    for plan, judged in zip(plans, getattr(trainer, "judged", []), strict=False):
        plan |= judged
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "plans": plans}


def judge_plans(trainer: Any) -> None:
    """Makes a trainer compare its plans with those made from freshly encoded rows, in `trainer.judged`."""
    from gcbs_st.embeddings.encode import encode_rows
    from gcbs_st.planners.quality import plan_quality

    trainer.judged = []
    own_plan, plan_rows = trainer.plan_batches, trainer.replanner.plan_rows

    def judge(name: str, fetched: Any, *rest: Any) -> np.ndarray:
        part, size = trainer.source.parts[name], trainer.planned_samplers[name].batch_size
        whole = slice(len(fetched.rows) // size * size)
        taken = type(fetched)(fetched.rows[whole], [a[whole] for a in fetched.arrays], fetched.ages[whole])
        fresh = encode_rows(trainer.model, part.dataset, taken.rows, part.columns, batch_size=256)
        orders = {"closed_of_fresh_plan": own_plan(*fresh, size, np.random.default_rng(0))}

        def plan(*given: Any) -> np.ndarray:
            orders["closed_fresh"] = own_plan(*given)
            return orders["closed_fresh"]

        trainer.plan_batches = plan
        new = plan_rows(name, taken, *rest)
        trainer.plan_batches = own_plan
        qualities = {key: plan_quality(*fresh, order, size, sample_rows=4096) for key, order in orders.items()}
        trainer.judged.append({key: quality.closed for key, quality in qualities.items()})
        return new

    trainer.replanner.plan_rows = judge


# ------------------------------------------------------------------ several ranks


def measure_ranks(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the seconds that 1, 2 and 3 processes on this machine take for a plan, and what it closes."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for ranks in RANKS:
        torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--rdzv_backend=c10d"]
        command = [sys.executable, *torchrun, "--rdzv_endpoint=127.0.0.1:0", *arguments.command, "--job", "{}"]
        for planner, result in run_fresh(f"{ranks} processes", command)[0].items():
            results.setdefault(planner, {})[str(ranks)] = result
            tell(f"{ranks} processes: {planner} {result}")
    lines = [
        [planner, *[f"{by[str(ranks)]['seconds']:.2f} s, {by[str(ranks)]['closed']:.3f}" for ranks in RANKS]]
        for planner, by in results.items()
    ]
    table = markdown_table(["planner", *[f"{ranks} processes: seconds, closed" for ranks in RANKS]], lines)
    yield {"setting": "ranks", "rounds": arguments.rounds, "batch_size": RANKS_BATCH, "results": results}, table


def run_rank(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Plans several times as one of the ranks; returns the times on the first one, which embeds the rows."""
    import torch
    from accelerate import PartialState

    from gcbs_st.embeddings.encode import encode_rows
    from gcbs_st.models.load import load_model
    from gcbs_st.planners import make_planner
    from gcbs_st.planners.quality import plan_quality
    from gcbs_st.rows.columns import text_columns
    from gcbs_st.training.parallel_planning import plan_with_all

    state = PartialState(cpu=True)
    pairs: tuple[np.ndarray, np.ndarray] | None = None
    if state.is_main_process:
        rows = load_rows(arguments)
        ids = np.arange(len(rows) // RANKS_BATCH * RANKS_BATCH)
        model = load_model(arguments.model, static=True)
        anchors, positives = encode_rows(model, rows, ids, text_columns(rows), batch_size=256)
        pairs = anchors, positives

    def plan(name: str, given: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
        planner, rng = make_planner(name), np.random.default_rng(0)
        if state.num_processes == 1 and given is not None:
            return planner.plan(*given, RANKS_BATCH, rng)
        device = torch.device("cpu")
        return plan_with_all(planner, given, RANKS_BATCH, rng, ranks=state.num_processes, device=device)

    results = {}
    for name in RANKS_PLANNERS:
        few = 8 * RANKS_BATCH * state.num_processes
        plan(name, None if pairs is None else (pairs[0][:few], pairs[1][:few]))  # compiles
        seconds, order = [], np.empty(0, np.int64)
        for _ in range(arguments.rounds):
            state.wait_for_everyone()
            began = time.perf_counter()
            order = plan(name, pairs)
            seconds.append(time.perf_counter() - began)
        if pairs is not None:
            closed = plan_quality(*pairs, order, RANKS_BATCH, sample_rows=4096).closed
            results[name] = {"seconds": statistics.median(seconds), "every_run": seconds, "closed": closed}
    state.wait_for_everyone()
    state.destroy_process_group()
    return results or None


# ------------------------------------------------------------------ the store alone


def measure_store(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields write rate and resident memory of the store, filled in batches of random rows, in float16 on disk."""
    import psutil

    from gcbs_st.embeddings.store import EmbeddingStore

    n, d, batch_size = arguments.rows or 1_000_000, 384, 64
    rng, process = np.random.default_rng(0), psutil.Process()
    order, batch = rng.permutation(n), rng.normal(size=(batch_size, d)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddingStore(n, 2, "benchmark", dtype="float16", folder=Path(folder) / "store")
        store.write(order[:batch_size], [batch, batch], 0)
        before, most, began = process.memory_info().rss, 0, time.perf_counter()
        for step, start in enumerate(range(0, n - batch_size + 1, batch_size)):
            store.write(order[start : start + batch_size], [batch, batch], step)
            if step % 100 == 0:
                most = max(most, process.memory_info().rss)
        seconds = time.perf_counter() - began
        store.close()
    report = {
        "setting": "store", "rows": n, "dimensions": d, "columns": 2, "batch_size": batch_size,
        "batches_a_second": n / batch_size / seconds, "rows_a_second": n / seconds,
        "resident_megabytes": (most - before) / 2**20,
    }  # fmt: skip
    names = ("rows", "dimensions", "batches_a_second", "rows_a_second", "resident_megabytes")
    header, cells = [name.replace("_", " ") for name in names], [f"{report[name]:,.0f}" for name in names]
    yield report, markdown_table(header, [cells])


# ------------------------------------------------------------------ the table of runs


def make_table(report: dict[str, Any]) -> str:
    """Returns the report of runs as a Markdown table."""
    lines = []
    for name, result in report["results"].items():
        plans = {int(plan["epoch"] + 0.5): plan for plan in result["plans"] or []}
        times = result["seconds"], result["times_random"], result["cpu_times_random"]
        cells = ["", "", ""] if None in times else [f"{times[0]:.1f}", *[f"{ratio:.3f}" for ratio in times[1:]]]
        for epoch in range(EPOCHS):
            plan = plans.get(epoch, {})
            both = [plan.get(key) for key in ("closed_fresh", "closed_of_fresh_plan")]
            cells.append("" if None in both else f"{both[0]:.3f} of {both[1]:.3f}")
        lines.append([name, *cells])
    epochs = [f"closed, epoch {epoch + 1}" for epoch in range(EPOCHS)]
    together = ", each at the same time as random batches, one core each" if report["together"] else ""
    return (
        markdown_table(["embeddings", "seconds", "x random", "CPU x random", *epochs], lines)
        + f"\n\n{report['setting']}: {report['rows']} rows, B = {report['batch_size']}, planner {report['planner']}, "
        f"medians of {report['rounds']} rounds{together}. Closed: on freshly encoded rows, of what a plan made from "
        "these closes."
    )


if __name__ == "__main__":
    sys.exit(main())
