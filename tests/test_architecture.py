"""The layout: which room may import which, what lies flat, and that the user's half is light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gcbs_st"

# Room -> the rooms that it may import. The first block is the library, along the way of the data; nothing of it may
# import the bench below it.
MAY_IMPORT = {
    "files": "",
    "ranks": "",
    "config": "",
    "rows": "",
    "planners": "",
    "losses": "",
    "embeddings": "rows ranks files",
    "batches": "files",
    "training": "rows embeddings planners batches losses files ranks",
    "__init__": "training losses",
    # The bench.
    "advice": "rows embeddings planners batches losses training",
    "models": "",
    "corpora": "rows files",
    "evaluation": "embeddings",
    "records": "batches config files",
    "experiments": "training evaluation records corpora models planners losses batches rows config files",
    "reports": "advice experiments records embeddings batches planners models rows config files",
    "commands": "advice reports experiments records evaluation embeddings corpora models planners batches rows config files",
    "cli": "commands",
}
LIBRARY = list(MAY_IMPORT)[:10]
BENCH = list(MAY_IMPORT)[10:]
FLAT = {"__init__.py", "cli.py", "config.py", "files.py", "ranks.py"}


def imported_modules(source: str) -> set[str]:
    """Modules of the package that a source text imports, wherever in it, as dotted paths below `gcbs_st`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [
                f"{node.module}.{alias.name}" if node.module == "gcbs_st" else node.module for alias in node.names
            ]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.removeprefix("gcbs_st.") for name in names if name.startswith("gcbs_st.")}
    return found - {"__version__"}


def room_of(path: str) -> str:
    """The room of a module's dotted path, or of a file's path in the package."""
    return path.removesuffix(".py").replace("/", ".").split(".")[0]


def package_files() -> list[str]:
    """All modules of the package, as paths in it."""
    return sorted(str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", package_files())
def test_imports_go_one_way(file):
    """A module imports its own room and those that the table names."""
    allowed = {room_of(file), *MAY_IMPORT[room_of(file)].split()}
    assert set() == {room_of(module) for module in imported_modules((PACKAGE / file).read_text())} - allowed


@pytest.mark.parametrize("file", package_files())
def test_modules_are_imported_exactly(file):
    """No module imports the face of its own room, and none imports itself in a circle within the room."""
    own = room_of(file)
    if file not in FLAT:
        assert own not in imported_modules((PACKAGE / file).read_text())


def test_there_are_no_circles():
    """Modules can be put in an order in which each imports only earlier ones."""
    modules = {file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): file for file in package_files()}
    edges = {
        name: {module for module in imported_modules((PACKAGE / file).read_text()) if module in modules}
        for name, file in modules.items()
        if not file.endswith("__init__.py")
    }
    while edges:
        free = {name for name, needed in edges.items() if not needed & edges.keys()}
        assert free, f"these import each other in a circle: {sorted(edges)}"
        edges = {name: needed for name, needed in edges.items() if name not in free}


def test_planners_import_no_sibling():
    """A planner stands on planners/base.py and planners/algorithms, and on no other planner."""
    planners = {file.stem for file in (PACKAGE / "planners").glob("*.py")} - {
        "__init__",
        "base",
        "quality",
        "estimate",
    }
    for name in planners:
        used = imported_modules((PACKAGE / "planners" / f"{name}.py").read_text())
        assert set() == {f"planners.{other}" for other in planners} & used, name


def test_nothing_else_lies_flat():
    """Modules lie in rooms, but for five."""
    assert {file.name for file in PACKAGE.glob("*.py")} == FLAT
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == (
        MAY_IMPORT.keys() - {file.removesuffix(".py") for file in FLAT}
    )


def test_rooms_introduce_themselves():
    """Each room says in its docstring what goes in, what comes out, and truly what it may import."""
    for room in MAY_IMPORT:
        if (PACKAGE / room).is_dir():
            words = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
            stated = words.split("May import:")[1].replace("\n", " ").rstrip(".").replace("`", "").strip()
            assert (MAY_IMPORT[room].replace(" ", ", ") or "nothing of ours") == stated, room


def test_the_rules_can_fail():
    """Imports are seen in all their forms, also inside functions."""
    source = "from gcbs_st.training.trainer import A\nimport gcbs_st.planners.base\ndef f():\n    from gcbs_st import losses"
    assert {"training.trainer", "planners.base", "losses"} == imported_modules(source)


def modules_loaded_by(code: str) -> list[str]:
    """The modules that a new process has loaded after running code."""
    code += "\nimport sys, json\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_users_half_is_light():
    """The trainer loads nothing of the bench, and no package that only the bench needs."""
    loaded = modules_loaded_by("from gcbs_st import GCBSTrainer, GCBSTrainingArguments")
    assert "gcbs_st.training.trainer" in loaded
    assert [] == [name for name in loaded if name.startswith(tuple(f"gcbs_st.{room}" for room in BENCH))]
    assert [] == [name for name in ("mteb", "matplotlib", "gcbs_st.config") if name in loaded]


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
import gcbs_st.evaluation.sts, gcbs_st.experiments.experiment
facts["extras"] = [name for name in ("mteb", "matplotlib") if name in sys.modules]
print(json.dumps(facts))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr[-2000:]
    expected = {
        "light": True, "not there": [], "an unknown name": False, "trainer": "gcbs_st.training.trainer", "extras": [],
    }  # fmt: skip
    assert expected == json.loads(done.stdout)
