"""Tests that every public name has a docstring with an example; pytest runs the examples themselves."""

from __future__ import annotations

import doctest
import importlib
import inspect
from typing import Any

import pytest

MODULES = ["gcbs_st", "gcbs_st.planners", "gcbs_st.losses", "gcbs_st.planners.quality"]
WITHOUT_ALL = {"gcbs_st.planners.quality": ["plan_quality", "PlanQuality"]}


def public_names() -> list[tuple[str, str]]:
    """(module, name) of what users may import."""
    found = []
    for module in MODULES:
        names = WITHOUT_ALL.get(module) or importlib.import_module(module).__all__
        found += [(module, name) for name in names if not name.startswith("__")]
    return found


def resolve(module: str, name: str) -> Any:
    """The object; skips where the host is too old for it."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("module, name", public_names(), ids=lambda text: text)
def test_it_has_an_example(module, name):
    """One that shows something, and that stands where the test run looks for it."""
    found = resolve(module, name)
    assert callable(found)
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(found) or "")
    assert any(example.want for example in examples), "nothing comes out of it"
    home = importlib.import_module(found.__module__)
    assert found.__module__.startswith("gcbs_st."), "defined elsewhere"
    collected = doctest.DocTestFinder(recurse=True).find(home)
    assert [] != [one for one in collected if one.name.endswith(f".{name}") and one.examples]


@pytest.mark.parametrize("module", MODULES)
def test_names_of_the_module_exist(module):
    """Nothing is promised that is not there, and `dir` shows what is."""
    imported = importlib.import_module(module)
    names = [name for owner, name in public_names() if owner == module]
    assert names
    assert set(names) <= set(dir(imported))
    assert all(resolve(module, name) is not None for name in names)
