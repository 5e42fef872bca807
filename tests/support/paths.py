"""Where the tests' own modules lie; for processes that are not started by pytest."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
MODULES = [str(TESTS / folder) for folder in (".", "support", "jobs", "maintain")]


def with_modules(environment: dict[str, str]) -> dict[str, str]:
    """A copy of an environment in which Python finds the tests' modules."""
    return {**environment, "PYTHONPATH": os.pathsep.join([*MODULES, environment.get("PYTHONPATH", "")]).rstrip(":")}
