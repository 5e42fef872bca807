"""Runs sentence-transformers' own training scripts, with its trainers and then with ours.

    python tests/maintain/run_host_examples.py --checkout DIR             # all scripts, a few minutes
    python tests/maintain/run_host_examples.py --checkout DIR --only nli peft --json records.json
    python tests/maintain/run_host_examples.py --checkout DIR --write docs/host-examples.md

DIR is a checkout of sentence-transformers, of a version near the installed one. The scripts run as they are, but for
one rule: where they import a trainer and its arguments of the host, they find ours, with planner="bisect". Datasets and
models of the hub are small local ones of the same columns and architectures, and batches, epochs and evaluations are
cut down (see `host_examples`). Whether batches were planned is measured from outside: a copy of the untrained model
embeds the rows of each training batch, and rows of planned batches are clearly more alike than the same rows dealt
into batches at random. Exit code 1 if the host trains a script that ours does not train, or trains on random batches
without a warning; 2 if nothing can be run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from host_examples.bootstrap import SENTENCES, make_hub_quietly, run

FOLDERS = [
    "sentence_transformer/training",
    "sentence_transformer/unsupervised_learning",
    "sparse_encoder/training",
    "multi_vector_encoder/training",
]
TRAINS = re.compile(r"\b(SentenceTransformer|SparseEncoder|MultiVectorEncoder)Trainer\(")
# Scripts that demand arguments, and one that would train ten times.
ARGUMENTS = {
    "train_ct_from_file.py": [SENTENCES],
    "train_ct_improved_from_file.py": [SENTENCES],
    "train_simcse_from_file.py": [SENTENCES],
    "train_tsdae_from_file.py": [SENTENCES],
    "train_sts_seed_optimization.py": ["google-bert/bert-base-uncased", "2"],
}
SECONDS_A_SCRIPT = 120
# Loaded once, in a process that each run is forked from.
PRELOADED = ["torch", "datasets", "transformers", "sentence_transformers"]
# Rows as alike as this many standard deviations above rows dealt at random were put together on purpose.
PLANNED_ABOVE = 4.0
# What a warning says if it tells that composing batches changes nothing, or is not done.
SAYS_RANDOM = re.compile(r"\brandom|cannot help|no difference|nothing to plan|not planned|not composed", re.IGNORECASE)
BEGIN, END = "<!-- host-examples -->", "<!-- /host-examples -->"
PACKAGES = ("sentence-transformers", "transformers", "datasets", "torch")
HEAD = """# The host's own examples

The training scripts of sentence-transformers' `examples`, run as they are, but with `GCBSTrainer` and its siblings
(`planner="bisect"`) where they import the host's trainers. Back to the [README](../README.md).

Datasets and models of the hub are small local ones with the same columns and architectures: what is looked at is whether
a script trains and whether its batches are planned, not what it scores. A copy of the untrained model embeds the rows of
each training batch; *within* is how alike the rows of a batch are, *re-dealt* how alike when the same rows are dealt into
batches at random. `python tests/maintain/run_host_examples.py --checkout DIR --write docs/host-examples.md` runs them all
and writes this table.
"""
Record = dict[str, Any]


def find_scripts(checkout: Path, patterns: list[str] | None) -> list[Path]:
    """Returns the scripts that train an embedding model, in order of their names.

    Args:
        checkout: of the host.
        patterns: regular expressions of which one has to be in a script's path; None for all scripts.
    """
    found = []
    for folder in FOLDERS:
        for script in sorted((checkout / "examples" / folder).rglob("*.py")):
            if TRAINS.search(script.read_text(encoding="utf-8")):
                found.append(script)
    wanted = [re.compile(pattern) for pattern in patterns or [""]]
    return [script for script in found if any(pattern.search(str(script)) for pattern in wanted)]


def run_script(context: Any, script: Path, whose: str, home: Path) -> Record:
    """Returns the record of one run, in a process and folder of its own.

    Args:
        context: of multiprocessing.
        script: its path.
        whose: trainers, "host" or "ours".
        home: for the folder.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{script.stem}_{whose}_", dir=home))
    begin = time.perf_counter()
    arguments = ARGUMENTS.get(script.name, [])
    process = context.Process(target=run, args=(str(script), whose, str(folder), arguments))
    process.start()
    process.join(SECONDS_A_SCRIPT)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    written = folder / "record.json"
    record: Record = json.loads(written.read_text()) if written.exists() else {"warnings": []}
    if late:
        record["error"] = _error("TimeoutError", f"not done after {SECONDS_A_SCRIPT} seconds")
    elif not written.exists():
        record["error"] = _error("ProcessError", f"the process ended with code {process.exitcode}")
    return record | {"seconds": round(time.perf_counter() - begin, 1), "folder": str(folder)}


def _error(kind: str, message: str) -> Record:
    return {"type": kind, "message": message, "where": "", "by_gcbs_st": False}


def trained(record: Record) -> bool:
    """Returns whether a script trained, and ran to its end."""
    return record["error"] is None and record.get("finished", 0) > 0 and record["steps"] > 0


def is_planned(record: Record) -> bool:
    """Returns whether the rows of a batch are clearly more alike than rows dealt at random."""
    return record.get("z") is not None and record["z"] > PLANNED_ABOVE


def host_verdict(record: Record) -> str:
    """Returns what became of a script with the host's trainer: its steps, or why it cannot be run here."""
    if trained(record):
        return f"{record['steps']} steps" + (", not random" if is_planned(record) else "")
    return f"not runnable here: {_reason(record['error'])}"


def our_verdict(record: Record) -> str:
    """Returns what became of a script with our trainer."""
    error = record["error"]
    if trained(record):
        return _verdict_on_batches(record)
    if error is None:
        return "FAILED: it ran to its end and trained nothing"
    if error["by_gcbs_st"] and not record["passes_before_steps"] and not record["steps"]:
        return f"refused: {_brief(error['message'])}"
    return f"FAILED: {error['type']}: {_brief(error['message'])}"


def _verdict_on_batches(record: Record) -> str:
    parts = record["parts"]
    at_random = [name for name, part in parts.items() if not is_planned(part)]
    if not at_random:
        return "planned"
    where = f" in {', '.join(at_random)}" if len(at_random) < len(parts) else ""
    sentences = [sentence for text in record["warnings"] for sentence in re.split(r"(?<=[.!?])\s+", text)]
    saying = next((sentence for sentence in sentences if SAYS_RANDOM.search(sentence)), None)
    if saying is None:
        return f"FAILED: random batches{where}, and no warning"
    return f"trained at random{where}, warned: {_brief(saying)}"


def is_good(host: Record, verdict: str) -> bool:
    """Returns whether ours does what it should: train what the host trains, on planned batches or with a warning."""
    return not trained(host) or verdict.startswith(("planned", "trained at random"))


def _reason(error: Record | None) -> str:
    if error is None:
        return "it trains nothing"
    if error["type"] == "ModuleNotFoundError":
        return f"{error['message'].split(chr(39))[1].split('.')[0]} is not installed"
    if "huggingface.co" in error["message"]:
        return "no small stand-in for its model"
    return f"{error['type']}: {_brief(error['message'])}"


def _brief(text: str, length: int = 300) -> str:
    """One line of a message, fit for a cell of a table; of paths of this machine the last part."""
    line = re.sub(r"(?<![\w.:/])/(?:[\w.-]+/)+", "", " ".join(text.split())).replace("|", "\\|")
    return line if len(line) <= length else f"{line[: length - 3]}..."


def table(results: dict[str, dict[str, Record]]) -> str:
    """Returns the table: a line for each script."""
    lines = ["| script | loss | host | ours | within / re-dealt |", "|---|---|---|---|---|"]
    for script, record in results.items():
        host, ours = record["host"], record.get("ours", {})
        alike = f"{ours['within']:.3f} / {ours['redealt']:.3f}" if ours.get("within") is not None else ""
        loss = host.get("loss") or ours.get("loss", "")
        verdict = our_verdict(ours) if ours else ""
        lines.append(f"| {script} | {loss} | {host_verdict(host)} | {verdict} | {alike} |")
    return "\n".join(lines)


def summary(results: dict[str, dict[str, Record]], seconds: float) -> str:
    """Returns how many scripts were run and what became of them, and with which versions."""
    run_by_host = [record for record in results.values() if trained(record["host"])]
    verdicts = [re.split("[:,]", our_verdict(record["ours"]))[0] for record in run_by_host]
    counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in sorted(set(verdicts)))
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"{len(results)} scripts, {len(run_by_host)} of which the host's trainer runs here. With ours: {counts}. "
        f"Run on {datetime.now(UTC):%Y-%m-%d} in {seconds:.0f} seconds with {versions}."
    )


def write_page(page: Path, text: str) -> None:
    """Replaces what stands between the marks of a page; makes the page if it is not there.

    Raises:
        ValueError: a page without the marks.
    """
    old = page.read_text() if page.exists() else f"{HEAD}\n{BEGIN}\n{END}\n"
    if BEGIN not in old or END not in old:
        raise ValueError(f"{page} has no lines {BEGIN} and {END}")
    page.write_text(f"{old.split(BEGIN)[0]}{BEGIN}\n{text}\n{END}{old.split(END, 1)[1]}")


def run_all(scripts: list[Path], checkout: Path, home: Path) -> dict[str, dict[str, Record]]:
    """Returns the records of all scripts; what the host cannot run is not tried with ours."""
    context = prepare(home)
    results: dict[str, dict[str, Record]] = {}
    for script in scripts:
        name = str(script.relative_to(checkout / "examples"))
        results[name] = {"host": run_script(context, script, "host", home)}
        if trained(results[name]["host"]):
            results[name]["ours"] = run_script(context, script, "ours", home)
        last = results[name].get("ours")
        print(name, host_verdict(results[name]["host"]), our_verdict(last) if last else "", sep=" | ", flush=True)
    return results


def prepare(home: Path) -> Any:
    """Returns the context in which processes are started; makes the hub that they find."""
    os.environ |= {
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "WANDB_DISABLED": "true",
        "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    maker = context.Process(target=make_hub_quietly, args=(str(home),))
    maker.start()
    maker.join()
    if maker.exitcode:
        raise RuntimeError(f"the models were not made, see {home / 'hub.txt'}")
    return context


def main() -> int:
    """Reads the command line, runs the scripts, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="of sentence-transformers")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="scripts whose path matches; default: all")
    parser.add_argument("--json", type=Path, help="where the records go")
    parser.add_argument("--write", type=Path, help="a page whose table is replaced; it is made if it is not there")
    parser.add_argument("--keep", type=Path, help="a folder for logs and what scripts write; default: a temporary one")
    given = parser.parse_args()
    if given.write and given.only:
        parser.error("--write: the table is of all scripts; leave --only out")
    checkout = given.checkout.resolve()
    scripts = find_scripts(checkout, given.only)
    if not scripts:
        print(f"{checkout} has no training script that is wanted; is it a checkout of the host?", file=sys.stderr)
        return 2
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="host_examples_") as temporary:
        home = (given.keep or Path(temporary)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        results = run_all(scripts, checkout, home)
    text = f"{summary(results, time.perf_counter() - begin)}\n\n{table(results)}"
    print(text)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    if given.write:
        write_page(given.write, text)
    return 0 if all(is_good(one["host"], our_verdict(one["ours"])) for one in results.values() if "ours" in one) else 1


if __name__ == "__main__":
    sys.exit(main())
