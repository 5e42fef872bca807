"""Runs an example as a program, in a process of its own; with small stand-ins in the place of the hub, or with --smoke."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

# Of 400 rows of a stand-in.
HELD_OUT = 48


def run_example(script: str, arguments: list[str], folder: str) -> None:
    """Runs a script as `python SCRIPT ARGUMENTS` would.

    Args:
        script: its path.
        arguments: of its command line.
        folder: which is made the working directory, and holds what is cached.
    """
    os.chdir(folder)
    os.environ |= {"XDG_CACHE_HOME": f"{folder}/cache", "TMPDIR": folder}
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(script))  # where Python looks first, whatever started it
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:  # of --help
        assert not end.code, f"{script} ended with {end.code}"


def run_with_stand_ins(script: str, arguments: list[str], folder: str) -> None:
    """Runs a script with its default settings: models and rows of the hub are small ones, and trainings short.

    Args:
        script: its path.
        arguments: of its command line.
        folder: as above; the environment says where the models are.
    """
    from datasets import IterableDataset
    from host_examples import caps
    from sentence_transformers import SentenceTransformerTrainingArguments

    from gcbs_st import GCBSTrainingArguments

    caps.stay_at_home()
    caps.mend()
    caps.cap_sizes()
    caps.cap_arguments(SentenceTransformerTrainingArguments)
    caps.cap_arguments(GCBSTrainingArguments)
    for name in ("take", "skip"):
        _cap_count(IterableDataset, name)
    run_example(script, arguments, folder)


def _cap_count(of: Any, name: str) -> None:
    """Makes a method take a smaller number of rows."""
    method = getattr(of, name)
    setattr(of, name, lambda self, n: method(self, min(n, HELD_OUT)))
