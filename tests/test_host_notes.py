"""docs/host-notes.md: each of its scripts is run, and prints what the page says that it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from forked_ranks import run_ranks
from script_job import work

PAGE = Path(__file__).parent.parent / "docs" / "host-notes.md"
BLOCK = re.compile(
    r"^```python\n# (\w+\.py)(, by torchrun[^\n]*)?\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", re.DOTALL | re.M
)
# Name, "by torchrun" or nothing, the script, and what it prints or nothing.
BLOCKS = BLOCK.findall(PAGE.read_text())
SCRIPTS = [block for block in BLOCKS if block[3]]


def lacking(shown: str, printed: str) -> list[str]:
    """The lines of what is shown that were not printed, in this order."""
    lines = iter(printed.splitlines())
    return [line for line in shown.splitlines() if line not in lines]


def test_every_block_is_taken():
    """Each script has its output, but the two that others import; and each note of the table has a script."""
    text = PAGE.read_text()
    assert text.count("```python") == len(BLOCKS)
    assert ["tiny.py", "sharded.py"] == [name for name, _, _, shown in BLOCKS if not shown]
    assert len(SCRIPTS) == text.count("```text") == len(re.findall(r"^\| \[", text, flags=re.MULTILINE))


def test_what_is_not_printed_is_seen():
    """A line that is missing, and one that comes too early."""
    assert [] == lacking("a\nc\n", "a\nb\nc\n")
    assert ["d"] == lacking("a\nd\n", "a\nb\nc\n")
    assert ["a"] == lacking("c\na\n", "a\nb\nc\n")


@pytest.mark.parametrize(("name", "launched", "code", "shown"), SCRIPTS, ids=[block[0] for block in SCRIPTS])
def test_a_script_prints_what_the_page_says(name, launched, code, shown, tmp_path):
    """On as many processes as its first line says; the first of them prints the lines of the page, in their order."""
    for other, _, text, _ in BLOCKS:
        (tmp_path / other).write_text(text)
    run_ranks(work, 2 if launched else 1, str(tmp_path / name), folder=tmp_path)
    printed = (tmp_path / "log_0").read_text()
    assert [] == lacking(shown, printed), printed[-3000:]
