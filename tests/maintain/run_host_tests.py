"""Runs sentence-transformers' own tests of its trainers and samplers, with its trainers and then with ours.

    python tests/maintain/run_host_tests.py --checkout DIR            # a checkout of sentence-transformers
    python tests/maintain/run_host_tests.py --slow --json host.json   # clones the tag of the installed version

Its source distribution has no tests, so a checkout is needed; one of a version that is near the installed one will
do. Models and rows that the tests load from the hub are made here, small and random (see ``host_hub.py``). Prints
how many tests pass with either trainer, and each test that passes with theirs and not with ours, with the reason.
The exit code is 1 if a difference is not among those explained in `DIFFERENCES`, and 2 if the tests cannot be run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
MODULES = [str(folder) for folder in (TESTS, TESTS.parent, TESTS.parent / "support")]
sys.path.extend(MODULES)
REPOSITORY = "https://github.com/huggingface/sentence-transformers"
FILES = [
    "tests/sentence_transformer/test_trainer.py",
    "tests/sentence_transformer/test_training_args.py",
    "tests/sparse_encoder/test_trainer.py",
    "tests/multi_vector_encoder/test_trainer.py",
    "tests/base/test_trainer.py",
    "tests/base/samplers",
]
# What passes with the host's trainers and not with ours, and why: (pattern of the test's name, reason).
DIFFERENCES = [
    (
        r"::test_trainer_get_batch_sampler_(class|function)$",
        "batch_sampler: a class or function of one's own is refused, since which rows share a batch is the planner's "
        "to decide",
    ),
    (
        r"::test_trainer\[.*True\]$|::test_trainer_prompts\[[^-]*-True-|::test_trainer_featureless_iterable_dataset",
        "an IterableDataset is refused before the host looks at it: its rows cannot be put in an order",
    ),
    (
        r"::test_trainer_no_eval_dataset_with_eval_strategy\[False-False\]$",
        "the host's message names the class of the trainer, which is ours",
    ),
]
Results = dict[str, dict[str, str]]


class CannotRun(Exception):
    """The tests cannot be run; the message says why and what to do."""


def clone(into: Path) -> Path:
    """Returns a checkout of the installed version's tag."""
    tag = f"v{version('sentence-transformers')}"
    command = ["git", "clone", "-q", "--depth", "1", "--branch", tag, REPOSITORY, str(into)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        why = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why:
        raise CannotRun(f"{REPOSITORY} {tag} cannot be had ({why}); give a checkout with --checkout")
    return into


def run(checkout: Path, whose: str, home: Path, options: list[str]) -> Results:
    """Returns what became of each test with one's trainers.

    Raises:
        CannotRun: pytest did not come to run them.
    """
    files = [name for name in FILES if (checkout / name).exists()]
    if not files:
        raise CannotRun(f"{checkout} has none of {', '.join(FILES)}; is it a checkout of sentence-transformers?")
    results = home / f"{whose}.json"
    environment = {
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [*MODULES, os.environ.get("PYTHONPATH")])),
        "HF_HUB_CACHE": str(home / "hub"), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true",
        "GCBS_ST_HOST_TRAINER": whose, "GCBS_ST_HOST_RESULTS": str(results),
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "host_plugin", "-p", "no:cacheprovider", "--rootdir"]
    command += [str(checkout), "-o", "addopts=", *options, *files]
    log = home / f"{whose}.log"
    with log.open("w") as file:
        subprocess.run(command, cwd=checkout, env=environment, stdout=file, stderr=file, check=False)
    if not results.exists():
        raise CannotRun(f"pytest did not run:\n{log.read_text()[-2000:]}")
    return json.loads(results.read_text())["tests"]


def compare(theirs: Results, ours: Results) -> dict[str, Any]:
    """Returns the counts, what differs and why, and what fails alike."""
    differing = []
    for name, result in sorted(theirs.items()):
        mine = ours.get(name, {"outcome": "not run", "message": ""})
        if result["outcome"] != mine["outcome"]:
            reason = next((why for pattern, why in DIFFERENCES if re.search(pattern, name)), None)
            differing.append(
                {"test": name, "theirs": result["outcome"], "ours": mine["outcome"], "error": mine["message"]}
                | {"reason": reason if result["outcome"] == "passed" else None}
            )
    alike = [
        {"test": name, "error": result["message"]}
        for name, result in sorted(theirs.items())
        if "failed" == result["outcome"] == ours.get(name, {}).get("outcome")
    ]
    return {
        "versions": {name: version(name) for name in ("sentence-transformers", "transformers", "accelerate", "torch")},
        "theirs": _count(theirs),
        "ours": _count(ours),
        "differences": differing,
        "fail with both": alike,
        "unexplained": [one["test"] for one in differing if one["reason"] is None],
    }


def _count(results: Results) -> dict[str, int]:
    outcomes = [result["outcome"] for result in results.values()]
    return {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")}


def describe(summary: dict[str, Any]) -> str:
    """Returns the summary as text; tests that differ for one reason are counted, the unexplained ones named."""
    lines = [", ".join(f"{name} {number}" for name, number in summary["versions"].items())]
    lines += [
        f"{whose}: " + ", ".join(f"{n} {key}" for key, n in summary[whose].items()) for whose in ("theirs", "ours")
    ]
    reasons = [one["reason"] for one in summary["differences"]]
    for reason in dict.fromkeys(filter(None, reasons)):
        tests = [one["test"] for one in summary["differences"] if one["reason"] == reason]
        lines += [f"{len(tests)} differ: {reason}", *(f"    {test}" for test in tests)]
    for one in summary["differences"]:
        if one["reason"] is None:
            lines.append(
                f"UNEXPLAINED: {one['test']}: {one['theirs']} with theirs, {one['ours']} with ours: {one['error']}"
            )
    lines += [f"fails with both: {one['test']}: {one['error']}" for one in summary["fail with both"]]
    return "\n".join(lines)


def main() -> int:
    """Reads the command line, runs the tests twice, prints what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="of sentence-transformers; default: cloned")
    parser.add_argument("--slow", action="store_true", help="also those that its authors marked as slow")
    parser.add_argument("--json", type=Path, help="where the summary goes")
    parser.add_argument("--keep", type=Path, help="a folder for logs and the made-up hub; default: a temporary one")
    parser.add_argument("-k", help="only tests whose names match, as pytest has it")
    given = parser.parse_args()
    options = ["-m", "" if given.slow else "not slow", *(["-k", given.k] if given.k else [])]
    with tempfile.TemporaryDirectory(prefix="host_tests_") as temporary:
        home = (given.keep or Path(temporary)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        try:
            checkout = (given.checkout or clone(Path(temporary) / "checkout")).resolve()
            _make_hub(home)
            summary = compare(*(run(checkout, whose, home, options) for whose in ("theirs", "ours")))
        except CannotRun as error:
            print(error, file=sys.stderr)
            return 2
    if given.json:
        given.json.write_text(json.dumps(summary, indent=2) + "\n")
    print(describe(summary))
    return 1 if summary["unexplained"] else 0


def _make_hub(home: Path) -> None:
    from host_hub import make_hub

    make_hub(home)


if __name__ == "__main__":
    sys.exit(main())
