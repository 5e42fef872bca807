"""Write the batches of a plan as Parquet files that any trainer reads front to back, and print one JSON line.

The rows of a dataset, batch by batch, with the columns `row_id` and `batch_id`, and a manifest that says what they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcbs_st.commands.embed import add_dataset_options
from gcbs_st.commands.shell import make_parser, quieten, run_command

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    Planned = tuple[Dataset, np.ndarray, int, dict[str, Any]]

EXAMPLE = """
{program} --dataset pairs.jsonl --order order.npy --batch-size 64 --out batches
{program} --dataset pairs.jsonl --order order.npy --batch-size 64 --shuffle-batches 1 --out batches --overwrite
{program} --run runs/quickstart/gcbs --out batches
"""


def main(argv: Sequence[str] | None = None, *, program: str = "gcbs-st export") -> int:
    """Runs the command line and returns the exit code, see `gcbs_st.commands.shell`."""
    parser = make_parser(program, __doc__, EXAMPLE)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--order", type=Path, metavar="O.npy", help="of gcbs-st plan; with --dataset, --batch-size")
    source.add_argument("--run", type=Path, metavar="FOLDER", help="of a finished run: its last plan and its rows")
    add_dataset_options(parser, required=False)
    add("--batch-size", type=int, metavar="B", help="rows per batch, as planned")
    add("--record", type=Path, metavar="FILE", help="with --order: the JSON line that planning printed")
    add("--rows-per-shard", type=int, default=100_000, metavar="N", help="per file at most (default: %(default)s)")
    add(
        "--shuffle-batches",
        type=int,
        metavar="SEED",
        help="write whole batches in random order: planners leave like batches side by side",
    )
    add("--out", required=True, type=Path, metavar="FOLDER", help="of the files; new or empty")
    add("--overwrite", action="store_true", help="replace the export that is there")
    arguments = parser.parse_args(argv)
    quieten()
    return run_command(program, lambda: _export(arguments))


def _export(arguments: argparse.Namespace) -> None:
    from gcbs_st.batches.export import export_batches, shuffled_batches

    if arguments.rows_per_shard < 1:
        raise ValueError(f"--rows-per-shard: got {arguments.rows_per_shard}, expected at least 1")
    dataset, order, batch_size, facts = (_of_run if arguments.run is not None else _of_order)(arguments)
    if arguments.shuffle_batches is not None:
        order = shuffled_batches(order, batch_size, arguments.shuffle_batches)
        facts["shuffle_seed"] = arguments.shuffle_batches
    began = time.perf_counter()
    manifest = export_batches(
        dataset,
        order,
        batch_size,
        arguments.out,
        rows_per_shard=arguments.rows_per_shard,
        overwrite=arguments.overwrite,
        facts=facts,
        progress="writing" if sys.stderr.isatty() else None,
    )
    if left := manifest["left_out"]:
        print(f"{left} of {len(dataset)} rows are in no whole batch of {batch_size}: left out.", file=sys.stderr)
    shown = {key: manifest[key] for key in ("rows", "batches", "batch_size", "left_out", "plan", "dataset")}
    seconds = round(time.perf_counter() - began, 3)
    print(json.dumps({**shown, "shards": len(manifest["shards"]), "seconds": seconds}))


def _of_order(arguments: argparse.Namespace) -> Planned:
    """The dataset, order, batch size and facts of the options that name files."""
    import numpy as np

    from gcbs_st.corpora.corpus import read_rows
    from gcbs_st.files import read_json

    for name in ("dataset", "batch_size"):
        if getattr(arguments, name) is None:
            raise ValueError(f"--order goes with --dataset and --batch-size; --{name.replace('_', '-')} is missing")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size: got {arguments.batch_size}, expected at least 1")
    try:
        order = np.load(arguments.order, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"--order: {arguments.order} is not a whole .npy file ({error})") from None
    if not isinstance(order, np.ndarray):
        raise ValueError(f"--order: {arguments.order} holds several arrays, expected a .npy file of gcbs-st plan")
    record = {} if arguments.record is None else read_json(arguments.record, dict)
    dataset = read_rows(arguments.dataset, split=arguments.split, name=arguments.name)
    facts = {"source": arguments.dataset, "planner": record.get("planner")}
    return dataset, order, arguments.batch_size, facts


def _of_run(arguments: argparse.Namespace) -> Planned:
    """The dataset, order, batch size and facts of the last plan of a run's folder."""
    from gcbs_st.batches.plan_history import PLANS_FOLDER, plan_files, read_stored_plan
    from gcbs_st.experiments.data import load_trained_rows
    from gcbs_st.records.run_folder import read_run

    for name in ("dataset", "batch_size", "name", "record"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --run, which says it itself")
    if arguments.split != "train":
        raise ValueError("--split does not go with --run, which says it itself")
    config, run = read_run(arguments.run)
    if not (files := plan_files(arguments.run / PLANS_FOLDER)):
        raise ValueError(f"--run: {arguments.run} keeps no plans ({PLANS_FOLDER}/step-*.npz): train it again")
    plans = read_stored_plan(files[-1])
    if len(plans) != 1:
        raise ValueError(f"--run: {files[-1]} holds the plans of {', '.join(plans)}, expected those of one dataset")
    (plan,) = plans.values()
    rows, _ = load_trained_rows(arguments.run, config, run.record["corpus_hash"])
    if plan.rows != len(rows):
        raise ValueError(f"--run: {files[-1]} is a plan of {plan.rows} rows, but the corpus has {len(rows)}")
    facts = {
        "source": str(arguments.run),
        "planner": plan.planner or None,
        "planner_options": dict(plan.options or {}),
    }
    return rows, plan.order, plan.batch_size, {**facts, "step": plan.step}
