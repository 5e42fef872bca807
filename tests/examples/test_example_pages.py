"""The pages of the examples: each folder has one, all are linked, and the commands that they show are ones that work."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
from example_job import run_example
from forked_ranks import run_alone
from test_docs import ROOT, broken, links

from gcbs_st.cli import main

EXAMPLES = ROOT / "examples"
INDEX = EXAMPLES / "README.md"
PAGES = sorted(EXAMPLES.glob("*/README.md"))
PARTS = ["**What.**", "**When to use it.**", "**How to run it.**", "**What to expect.**"]


def shell_lines(page: Path) -> list[list[str]]:
    """The words of each line of a page's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [shlex.split(line) for line in "\n".join(blocks).splitlines() if line]


def script_of(words: list[str]) -> str:
    """The script that a command runs, from the root; empty if it runs none."""
    return next((word for word in words if word.startswith("examples/")), "")


def options_of(words: list[str]) -> list[str]:
    """The options that a command gives, without their values."""
    return [word.split("=")[0] for word in words if word.startswith("--")]


def test_every_folder_has_a_page():
    """What, when, how and what to expect, in this order, and the page of all leads there."""
    folders = {script.parent for script in EXAMPLES.glob("*/*.py")}
    assert folders == {page.parent for page in PAGES}
    assert {page.resolve() for page in PAGES} <= {file for file, _ in links(INDEX)}
    for page in PAGES:
        places = [page.read_text().find(part) for part in PARTS]
        assert -1 not in places and places == sorted(places), f"{page} lacks one of {PARTS}, or their order"


def test_the_readme_and_the_documentation_lead_there():
    """Who reads the README, or the page of training, finds the examples; the notebook is linked too."""
    for page in (ROOT / "README.md", ROOT / "docs" / "training.md"):
        assert INDEX.resolve() in {file for file, _ in links(page)}, page
    assert (EXAMPLES / "look_at_batches.ipynb").resolve() in {file for file, _ in links(INDEX)}


@pytest.mark.parametrize("page", [INDEX, *PAGES], ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page):
    """Each relative link is of a file that is there, and each anchor of a heading of its page."""
    assert [] == broken(page, ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_commands_are_those_of_the_script(page, tmp_path):
    """A page shows what the script itself shows, --smoke among it, and each option is one that the script has."""
    commands = [words for words in shell_lines(page) if script_of(words)]
    (script,) = page.parent.glob("*.py")
    shown = [
        shlex.split(line) for line in re.findall(r"^ *((?:python|torchrun|accelerate) .*)$", script.read_text(), re.M)
    ]
    assert shown == commands
    assert {str(script.relative_to(ROOT))} == {script_of(words) for words in commands}
    if page.parent.name == "peft_lora":
        pytest.importorskip("peft", reason="the example of adapters needs peft")
    help_text = run_alone(run_example, str(script), ["--help"], str(tmp_path), folder=tmp_path)
    described = help_text.split("\noptions:\n")[1]  # before it stand the commands themselves
    given = [option for words in commands for option in options_of(words[words.index(script_of(words)) :])]
    assert "--smoke" in given
    assert [] == [option for option in given if not re.search(rf"{option}\b", described)]


def test_launchers_take_their_options():
    """What stands before a script is what torchrun and accelerate themselves take."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    launched = [words for page in PAGES for words in shell_lines(page) if words[0] in ("torchrun", "accelerate")]
    assert {"torchrun", "accelerate"} == {words[0] for words in launched}
    for words in launched:
        script = script_of(words)
        parsed: argparse.Namespace
        if words[0] == "torchrun":
            parsed = get_args_parser().parse_args(words[1:])
            assert ("2", script) == (parsed.nproc_per_node, parsed.training_script)
        else:
            parsed = launch_command_parser().parse_args(words[2:])
            assert (2, script) == (parsed.num_processes, parsed.training_script)


def test_the_programs_commands_are_there(capsys):
    """Each line that calls gcbs-st names a command of it, and options that it has."""
    calls = [words[1:] for page in PAGES for words in shell_lines(page) if words[0] == "gcbs-st"]
    assert calls
    for name, *words in calls:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        shown = capsys.readouterr().out
        assert [] == [option for option in options_of(words) if option not in shown]


def test_the_page_of_all_shows_scripts_that_are_there():
    """Its commands, too."""
    commands = [words for words in shell_lines(INDEX) if script_of(words)]
    assert commands and all((ROOT / script_of(words)).is_file() for words in commands)
