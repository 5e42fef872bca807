"""Each cell of the feature matrix, and the table of them in docs/works-with.md.

The cells that are selected are run by a few jobs, see `launch.py`; each test then looks at one cell.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from matrix.case import COLUMNS, GROUPS, WORKS, Case, not_applicable, refused
from matrix.cases import CASES
from matrix.launch import run_cases
from matrix.optional import why_unusable
from matrix.table import BEGIN, END, block, disagreements, table, table_in, with_block

PAGE = Path(__file__).parents[2] / "docs" / "works-with.md"
TABLE = {case.name: case for case in CASES}


def cells():
    """Every cell that is run; those of cases that are not quick are slow."""
    for case in CASES:
        for column in COLUMNS:
            if case.cells[column].kind != "n/a":
                marks = [] if case.quick else [pytest.mark.slow]
                yield pytest.param(case.name, column, id=f"{case.name}, {column}", marks=marks)


@pytest.fixture(scope="module")
def records(request, tmp_path_factory):
    """What became of the cells whose tests were selected."""
    own = [item for item in request.session.items if getattr(item, "originalname", "") == test_cell.__name__]
    names = {item.callspec.params["name"] for item in own}
    return run_cases([case for case in CASES if case.name in names], tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize(("name", "column"), list(cells()))
def test_cell(name, column, records):
    """It is as the case expects: it works by all checks, or is refused with the error that says why."""
    record = records.get((name, column), {"outcome": "not run"})
    if record["outcome"] == "skipped":
        pytest.skip(record["why"])
    assert TABLE[name].cells[column].kind == record["outcome"], record


def test_the_pages_table_is_that_of_the_cases():
    """The page says of each case what is expected of it, and of no other."""
    assert [line for line in table(CASES) if line] == table_in(PAGE.read_text())


def test_no_cell_is_empty():
    """Every case says something of every column, under a name of its own, in a group that the table has."""
    assert len(CASES) == len(TABLE)
    for case in CASES:
        assert set(COLUMNS) == set(case.cells)
        assert case.group in GROUPS
        for cell in case.cells.values():
            assert cell.kind in ("works", "refused", "n/a")
            assert (cell.kind == "works") == (not cell.why)
            assert (cell.kind == "refused") == bool(cell.error and cell.match)


def test_a_cell_that_is_not_as_expected_is_told():
    """Failures, works in place of refusals, and cells that no job ran."""
    no = refused("for a reason", "ValueError", "reason")
    cases = [Case("a", cells={**dict.fromkeys(COLUMNS, WORKS)}), Case("b", cells=dict.fromkeys(COLUMNS, no))]
    good = {("a", c): {"outcome": "works"} for c in COLUMNS} | {("b", c): {"outcome": "refused"} for c in COLUMNS}
    assert [] == disagreements(cases, good)
    bad = {**good, ("a", "DDP"): {"outcome": "failed", "why": "it broke"}, ("b", "resume"): {"outcome": "works"}}
    del bad["a", "resume"]
    assert [
        "a, resume: not run, expected works. ",
        "a, DDP: failed, expected works. it broke",
        "b, resume: works, expected refused. ",
    ] == disagreements(cases, bad)


def test_the_block_is_of_the_run(monkeypatch):
    """It counts the records, and its table is read back as it was written."""
    monkeypatch.setattr("matrix.table.PACKAGES", ("torch",))
    cases = [Case("a", group="Losses"), Case("b", group="Data", cells=dict.fromkeys(COLUMNS, not_applicable("why")))]
    text = block(cases, {("a", column): {"outcome": "works"} for column in COLUMNS}, 61.2, 40.0)
    assert "2 features, 4 cells run: 4 work, 0 are refused" in text
    assert "in 61 seconds (40 processor seconds)" in text and "with torch " in text
    assert [line for line in table(cases) if line] == table_in(text)
    assert "| b | n/a: why | n/a: why | n/a: why | n/a: why |" in table_in(text)


def test_only_what_is_between_the_marks_is_written():
    """The rest of the page stays; a text without marks is refused."""
    text = f"before\n{BEGIN}\n| old |\n{END}\nafter\n"
    assert f"before\n{BEGIN}\nnew\n{END}\nafter\n" == with_block(text, f"{BEGIN}\nnew\n{END}")
    with pytest.raises(ValueError, match="no lines"):
        with_block("nothing", "new")


def test_an_optional_part_that_the_host_refuses_is_skipped_with_its_sentence(monkeypatch):
    """A newer transformers may ask for a peft that does not exist yet; what is absent is named."""
    pytest.importorskip("peft")
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "999.0")
    assert "please use a version >= 999.0" in why_unusable("peft")
    assert "no_such_part is not installed" == why_unusable("no_such_part")
    assert "" == why_unusable("numpy")
