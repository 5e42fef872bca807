#!/usr/bin/env python3
"""Time what planned windows of a stream cost: whole runs, in turns with the host's own trainer on the same stream.

Goes in: a file of pairs, drawn again with a number behind each text until there are enough rows. Comes out: wall
seconds and peak memory of both, and what the windows close of the gap.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import COLUMNS, MODEL, describe_machine, median, parse, run, run_fresh

from gcbs_st.commands.plan import peak_bytes
from gcbs_st.commands.shell import make_parser, tell
from gcbs_st.records.tables import markdown_table

PROGRAM = "python scripts/benchmarks/streams.py"
EXAMPLE = """
{program} --pairs $GCBS_ST_DATA/pairs/multi30k.jsonl.gz --json streams.json
{program} --pairs pairs.jsonl.gz --rows 20000 --window 4096 --rounds 1
"""
ARMS = ("host", "planned")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, see `gcbs_st.commands.shell`."""
    parser = make_parser(PROGRAM, __doc__, EXAMPLE)
    add = parser.add_argument
    add("--pairs", required=True, help="file with the columns anchor and positive")
    add("--model", default=MODEL, help="whose tokenizer a static model takes (default: %(default)s)")
    add("--dimensions", type=int, default=256, help="of the static model (default: %(default)s)")
    add("--rows", type=int, default=200_000, help="default: %(default)s")
    add("--window", type=int, default=16_384, help="rows of a window (default: %(default)s)")
    add("--batch-size", type=int, default=64, help="rows per batch (default: %(default)s)")
    add("--planner", default="bisect", help="default: %(default)s")
    add("--rounds", type=int, default=3, help="of both, in turns (default: %(default)s)")
    arguments = parse(parser, argv)
    # A job is this command once more, with `--job`.
    arguments.command = [__file__, *(sys.argv[1:] if argv is None else argv)]
    return run(PROGRAM, arguments, lambda: measure(arguments), lambda: run_job(arguments))


def measure(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields report and table after each round."""
    from gcbs_st.corpora.corpus import load_corpus

    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stream.jsonl"
        pairs = load_corpus(arguments.pairs, columns=COLUMNS).to_list()
        with file.open("w") as lines:
            for number in range(arguments.rows):
                again, row = divmod(number, len(pairs))
                text = f" {again}" if again else ""
                lines.write(json.dumps({name: pairs[row][name] + text for name in COLUMNS}) + "\n")
        for number in range(arguments.rounds):
            for arm in ARMS:
                job = json.dumps({"arm": arm, "file": str(file), "seed": number})
                runs[arm] += run_fresh(arm, [sys.executable, *arguments.command, "--job", job])
                tell(f"round {number + 1}: {arm} {runs[arm][-1]['seconds']:.1f} s")
            pairs_of = list(zip(runs["planned"], runs["host"], strict=True))
            results = {
                "times_host": median(one["seconds"] / other["seconds"] for one, other in pairs_of),
                "more_bytes": median(one["peak_bytes"] - other["peak_bytes"] for one, other in pairs_of),
                "every_run": runs,
            }
            yield {"rows": arguments.rows, "window": arguments.window, "results": results}, make_table(runs, results)


def make_table(runs: dict[str, list[dict[str, Any]]], results: dict[str, Any]) -> str:
    """Returns the report as a Markdown table."""
    lines = [
        [arm, *(f"{median(one[key] for one in found) / unit:.2f}" for key, unit in (("seconds", 1), ("peak_bytes", 1e9)))]
        for arm, found in runs.items()
    ]  # fmt: skip
    closed = median(value for one in runs["planned"] for value in one["closed"])
    return "\n".join(
        [
            markdown_table(["arm", "seconds", "peak GB"], lines),
            f"\nx {results['times_host']:.2f} of the host's seconds, {results['more_bytes'] / 1e6:.0f} MB more; a window closes "
            f"{closed:.2f}; {describe_machine()['cores']} cores.",
        ]
    )


def run_job(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the seconds of one training, the most memory that it held, and what its windows close."""
    import torch
    from datasets import load_dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import PrinterCallback

    from gcbs_st import GCBSTrainer, GCBSTrainingArguments
    from gcbs_st.models.load import load_model
    from gcbs_st.models.static import few_threads

    job = arguments.job
    torch.manual_seed(job["seed"])
    tokenizer = load_model(arguments.model).tokenizer
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=arguments.dimensions)], device="cpu")
    planned = job["arm"] == "planned"
    stream = load_dataset("json", data_files=job["file"], split="train", streaming=True)
    with tempfile.TemporaryDirectory() as folder:
        args = GCBSTrainingArguments(
            folder, max_steps=arguments.rows // arguments.batch_size, per_device_train_batch_size=arguments.batch_size,
            planner=arguments.planner, planning_window=arguments.window, save_strategy="no", report_to="none", use_cpu=True,
            disable_tqdm=True, learning_rate=1e-3, seed=job["seed"],
            accelerator_config={"dispatch_batches": False},  # which the host cannot do with a static model's features
        )  # fmt: skip
        vars(args)["claimed"] = True
        trainer_class = GCBSTrainer if planned else SentenceTransformerTrainer
        trainer = trainer_class(model, args, stream, loss=MultipleNegativesRankingLoss(model))
        trainer.remove_callback(PrinterCallback)
        with few_threads(model):
            began = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - began
    closed = [entry["gcbs/closed"] for entry in trainer.state.log_history if "gcbs/closed" in entry]
    return {"seconds": seconds, "peak_bytes": peak_bytes(), "closed": closed}


if __name__ == "__main__":
    sys.exit(main())
