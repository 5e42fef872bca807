"""The layout: data flows one way, and imports are light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gcbs_st"

# A module may import those of lower rooms, and those beside it that are named. Only the trainer and the
# experiment compose.
ROOMS = [
    {"batches", "projection", "rows", "training"},
    {
        "caches",
        "config",
        "distributions",
        "identifiers",
        "near_duplicates",
        "ranking",
        "static_training",
        "checkpoint",
        "sts_data",
        "embeddings",
        "files",
        "report",
        "losses",
        "graph",
        "statistics",
        "baselines",
        "products",
        "provenance",
        "ranks",
        "store",
    },
    {"docstrings", "harvest", "models", "plots", "source_parts"},
    {"code_corpus"},
    {"corpus_sources"},
    {
        "corpus",
        "planners",
        "sampler",
        "step_sampler",
        "evaluation",
        "word_vectors",
        "row_states",
    },
    {"code_search", "model_card", "plan_history", "arguments", "mteb_protocol", "sources"},
    {"scoring", "callback", "parallel_planning"},
    {"kept_rows", "planned_loading", "replanner"},
    {"planned_training"},
    {"multi_vector_trainer", "sparse_trainer", "trainer"},
    {"materials"},
    {"experiment"},
    {"cost"},
    {"dry_run"},
    {"arms"},
    {"runner"},
    {"comparison"},
    {"inspection", "reporting"},
    {"commands"},
    {"cli"},
]


def room(module: str) -> int:
    """The room that a module is in."""
    return next(level for level, names in enumerate(ROOMS) if module in names)


def imports(file: Path) -> set[str]:
    """The modules of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("gcbs_st.")}
    return found


def module_files() -> list[Path]:
    """All modules but the package's own front door, which imports what it shows."""
    return [file for file in PACKAGE.rglob("*.py") if file.name != "__init__.py" or file.parent != PACKAGE]


@pytest.mark.parametrize("file", module_files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    """No module imports a later stage, and only modules of one package import beside them."""
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    later = {name for name in imports(file) if name != own and room(name) >= room(own)}
    assert set() == later


def test_the_rule_can_fail(tmp_path):
    """An import of a later stage is seen."""
    file = tmp_path / "quality.py"
    file.write_text("from gcbs_st.trainer import GCBSTrainer\nimport gcbs_st.planners.base\n")
    assert {"trainer", "planners"} == imports(file)


def test_imports_are_light_and_every_name_is_there():
    """`import gcbs_st` loads nothing heavy; all that it lists is there when asked for, without the extras."""
    code = """
import json, sys
import gcbs_st
facts = {"light": "torch" not in sys.modules}
facts["not there"] = [name for name in gcbs_st.__all__ if name not in dir(gcbs_st) or not hasattr(gcbs_st, name)]
facts["an unknown name"] = hasattr(gcbs_st, "Nothing")
from gcbs_st import *
facts["trainer"] = GCBSTrainer.__module__
import gcbs_st.evaluation, gcbs_st.experiment
facts["extras"] = [name for name in ("mteb", "matplotlib") if name in sys.modules]
print(json.dumps(facts))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr[-2000:]
    expected = {
        "light": True, "not there": [], "an unknown name": False, "trainer": "gcbs_st.trainer", "extras": [],
    }  # fmt: skip
    assert expected == json.loads(done.stdout)
