"""A pytest plugin for ``run_host_tests.py``: our trainers in the place of the host's, and what became of each test.

The names are replaced in the test modules alone, after they were imported: the host's own modules keep theirs.
GCBS_ST_HOST_TRAINER says whose trainer is tested ("theirs" or "ours"), GCBS_ST_HOST_RESULTS which file to write.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
import sentence_transformers
from host_hub import load_rows

import gcbs_st

KINDS = ("SentenceTransformer", "SparseEncoder", "MultiVectorEncoder")
OURS = {
    "SentenceTransformer": "GCBS",
    "SparseEncoder": "GCBSSparseEncoder",
    "MultiVectorEncoder": "GCBSMultiVectorEncoder",
}
_seen: dict[str, dict[str, str]] = {}


def replacements() -> dict[Any, Any]:
    """What stands for what: trainers and arguments where both have them, and rows without a hub in any case."""
    found: dict[Any, Any] = {datasets.load_dataset: load_rows}
    if os.environ["GCBS_ST_HOST_TRAINER"] == "ours":
        for kind in KINDS:
            for part in ("Trainer", "TrainingArguments"):
                theirs = getattr(sentence_transformers, kind + part, None)
                ours = getattr(gcbs_st, OURS[kind] + part, None)
                if theirs is not None and ours is not None:
                    found[theirs] = ours
    return found


def modules_of_tests(root: Path) -> Iterator[ModuleType]:
    """The modules of the checkout's tests that are imported by now."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_relative_to(root / "tests"):
            yield module


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Replaces the names, when all test modules are imported and no test has run."""
    replaced = replacements()
    for module in modules_of_tests(config.rootpath):
        for name, value in list(vars(module).items()):
            if isinstance(value, type) or callable(value):
                try:
                    setattr(module, name, replaced.get(value, value))
                except TypeError:  # not hashable, so none of them
                    continue


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keeps the worst of a test's three phases."""
    if report.when != "call" and report.passed:
        return
    message = "" if report.passed else _last_line(report)
    _seen[report.nodeid] = {"outcome": report.outcome, "message": message}


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Keeps what could not be imported."""
    if report.failed:
        _seen[report.nodeid] = {"outcome": "failed", "message": str(report.longrepr).strip().splitlines()[-1]}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes what became of each test."""
    results = {"version": sentence_transformers.__version__, "tests": _seen}
    Path(os.environ["GCBS_ST_HOST_RESULTS"]).write_text(json.dumps(results, indent=1))


def _last_line(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr).strip().splitlines()[0]
