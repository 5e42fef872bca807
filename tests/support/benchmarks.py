"""The benchmarks of `scripts/benchmarks` as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from paths import ROOT

BENCHMARKS = ROOT / "scripts" / "benchmarks"


def load_benchmark(name: str) -> ModuleType:
    """A benchmark as a new module; what they share is found as when one is run."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
