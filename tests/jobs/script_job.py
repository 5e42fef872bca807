"""What each process of ``test_host_notes.py`` runs: a script of that page, beside the others."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from pathlib import Path


def work(script: str) -> None:
    """Runs a script as its reader does; what it writes to the temporary folder lies beside it."""
    folder = Path(script).parent
    sys.path.insert(0, str(folder))
    tempfile.tempdir = str(folder)
    os.environ["TMPDIR"] = str(folder)
    runpy.run_path(script, run_name="__main__")
