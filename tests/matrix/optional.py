"""Why an optional part of the matrix cannot be used here: it is absent, or the host refuses the installed version."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable


def why_unusable(what: str) -> str:
    """The reason, in the words of whoever refuses it; "" where it can be used.

    Args:
        what: a module, or "c++" for a compiler.
    """
    if what == "c++":
        return "" if shutil.which("c++") else "c++ is not installed"
    try:
        importlib.import_module(what)
        HOST_CHECKS.get(what, lambda: None)()
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except (ImportError, ValueError) as error:
        return str(error)
    return ""


def check_peft() -> None:
    """Asks the host whether it takes the installed peft; it raises ValueError if not."""
    from transformers.integrations import peft as integration

    integration.check_peft_version(min_version=integration.MIN_PEFT_VERSION)


# Versions that the host looks at when the part is used, not when it is imported.
HOST_CHECKS: dict[str, Callable[[], None]] = {"peft": check_peft}
