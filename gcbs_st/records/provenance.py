"""Where figures come from: the commit of the code and the versions of what it stands on."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
from pathlib import Path


def version_of(package: str) -> str | None:
    """Returns the version of an installed distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def commit_of_checkout() -> str | None:
    """Returns the commit of a checkout when first asked, + where files differ from it; None for an installed package."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
