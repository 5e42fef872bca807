"""The program `gcbs-st`: its commands, their help, their exit codes, and the scripts that are the same commands."""

from __future__ import annotations

import errno
import importlib.util
import os
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

import gcbs_st.commands
from gcbs_st import __version__
from gcbs_st.cli import COMMANDS, main
from gcbs_st.commands import shell
from gcbs_st.commands.train import next_steps

ROOT = Path(__file__).parents[2]
NAMES = [name for name, _, _ in COMMANDS]
SCRIPTS = {
    "train_sts": "train-sts",
    "evaluate_sts": "evaluate-sts",
    "evaluate_mteb": "evaluate-mteb",
    "plan_batches": "plan",
    "embed_rows": "embed",
    "export_batches": "export",
    "draw_batches": "draw",
    "compare": "compare",
    "train_code_search": "train-code-search",
    "evaluate_code_search": "evaluate-code-search",
    "evaluate_retrieval": "evaluate-retrieval",
    "inspect_batches": "inspect",
}


def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    command = [sys.executable, "-m", "gcbs_st.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_list_has_a_line_for_each_command(words, capsys):
    """Alone and with --help: every command, what it does, and the exit codes."""
    assert 0 == main(words)
    out = capsys.readouterr().out
    listed = dict(re.findall(r"^  (\S+) {2,}(\S.*)$", out.split("commands:")[1].split("\n\n")[0], flags=re.MULTILINE))
    assert {name: words for name, _, words in COMMANDS} == listed
    assert all(f"{code} " in out for code in (0, 1, 2, 130))


def test_every_module_of_a_command_is_listed():
    """A command that nobody can call is none; `shell` is what they share."""
    modules = {module.name for module in pkgutil.iter_modules(gcbs_st.commands.__path__)}
    assert modules - {"shell"} == {place.partition(":")[0] for _, place, _ in COMMANDS}


def test_the_version_is_that_of_the_package(capsys):
    """Of the package that runs, which is what pyproject.toml says."""
    assert 0 == main(["--version"])
    assert f"gcbs-st {__version__}\n" == capsys.readouterr().out
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (__version__, "gcbs_st.cli:main") == (project["version"], project["scripts"]["gcbs-st"])


def test_a_command_that_is_none(capsys):
    """Code 2 and one line that lists them."""
    assert 2 == main(["trian-sts", "--help"])
    shown = capsys.readouterr()
    assert ("", 1) == (shown.out, len(shown.err.splitlines()))
    assert f"got 'trian-sts', expected one of {', '.join(NAMES)}" in shown.err


def test_help_is_quick_and_shows_an_example():
    """No command imports torch, transformers or matplotlib to show its help."""
    code = f"""
import contextlib, io, sys
from gcbs_st.cli import main
for name in {NAMES!r}:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main([name, "--help"])
        except SystemExit as end:
            assert end.code == 0, (name, end.code)
    assert "example" in out.getvalue().split("options:")[1], name
    assert "usage: " in out.getvalue(), name
print([module for module in ("torch", "transformers", "matplotlib", "numba", "datasets") if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (0, "[]\n") == (done.returncode, done.stdout), done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_examples_name_options_that_there_are(name, capsys):
    """Each option of an example is one of the command's, and it is called as it is here."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    help_text, _, example = text.partition("example")
    lines = example.partition("\n")[2].replace("\\\n", " ").strip().splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        assert ["gcbs-st", name] == words[:2]
        options = [word.split("=")[0] for word in words if word.startswith("--")]
        assert [] == [option for option in options if option not in help_text]


@pytest.mark.parametrize(("script", "command"), SCRIPTS.items())
def test_a_script_is_its_command(script, command, capsys):
    """The same options and description; each shows examples with its own name."""
    spec = importlib.util.spec_from_file_location(f"{script}_of_cli", ROOT / "scripts" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    texts = []
    for call in (lambda: module.main(["--help"]), lambda: main([command, "--help"])):
        with pytest.raises(SystemExit):
            call()
        texts.append(capsys.readouterr().out)
    assert f"python scripts/{script}.py" in texts[0]
    words = [" ".join(text.replace(f"python scripts/{script}.py", f"gcbs-st {command}").split()) for text in texts]
    assert words[1] == words[0]


# ------------------------------------------------------------------ exit codes


def raises(error: BaseException):
    """Work that fails."""

    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("got 1,\n   expected 2"), 2, "me: error: got 1, expected 2"),
        (TypeError("a text"), 2, "me: error: a text"),
        (ImportError("mteb; run: pip install"), 2, "me: error: mteb; run: pip install"),
        (ModuleNotFoundError("No module named 'x'", name="x"), 2, "me: error: No module named 'x'"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.npy"), 2, "me: error: [Errno 2] No such file: 'x.npy'"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "me: error: [Errno 28] No space left on device"),
        (ValueError(), 2, "me: error: ValueError"),
        (KeyboardInterrupt(), 130, "me: interrupted"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(error, code, line, capsys, monkeypatch):
    """No traceback; what the machine lacks is no mistake of the user's."""
    monkeypatch.delenv("GCBS_ST_DEBUG", raising=False)
    assert code == shell.run_command("me", raises(error))
    assert ("", line + "\n") == capsys.readouterr()


def test_a_package_of_the_bench_that_is_missing_is_named_with_its_extra(tmp_path):
    """The library does without joblib and PyYAML; a command that does not says what to install."""
    code = """
import sys
from gcbs_st.cli import main
sys.modules[{module!r}] = None
sys.exit(main(["train-sts", "--config", "quickstart", "--dry-run"]))
"""
    for module in ("yaml", "joblib"):
        command = [sys.executable, "-c", code.format(module=module)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (2, "", 1) == (done.returncode, done.stdout, len(done.stderr.splitlines())), done.stderr
        assert done.stderr.endswith(
            f"import of {module} halted; None in sys.modules; run: pip install 'gcbs_st[bench]'\n"
        )


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debugging_shows_the_traceback(value, shown, capsys, monkeypatch):
    """GCBS_ST_DEBUG=1 changes what is shown, not the code."""
    monkeypatch.setenv("GCBS_ST_DEBUG", value)
    assert 2 == shell.run_command("me", raises(ValueError("no")))
    err = capsys.readouterr().err
    assert (shown, "me: error: no") == ("Traceback" in err, err.splitlines()[-1])


def test_a_defect_is_shown_with_its_place(capsys):
    """What is no mistake of the user's has code 1 and its traceback: it is to be reported."""
    assert 1 == shell.run_command("me", raises(RuntimeError("out of memory")))
    err = capsys.readouterr().err
    assert ("Traceback" in err, "me: failed: RuntimeError: out of memory") == (True, err.splitlines()[-1])


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1)])
def test_work_that_ends_says_how(result, code):
    """None is 0."""
    assert code == shell.run_command("me", lambda: result)


def test_a_reader_who_has_gone_is_no_traceback(tmp_path):
    """`gcbs-st plan ... | true`: nothing on stderr but silence, and no success."""
    code = "import sys; from gcbs_st.commands.shell import run_command\nsys.exit(run_command('me', lambda: print('x' * 10**6)))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (1, b"") == (process.wait(60), process.stderr.read())
    process.stderr.close()


def test_an_interrupted_process_ends_with_130():
    """As the shell itself has it."""
    code = "import sys, time; from gcbs_st.commands.shell import run_command\ndef work():\n print('on', flush=True); time.sleep(60)\nsys.exit(run_command('me', work))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b"on\n" == process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (130, b"me: interrupted\n") == (process.returncode, err)


# ------------------------------------------------------------------ as a user types it


def test_planning_from_the_command_line(tmp_path):
    """The program plans, prints one JSON line, and a mistake is one line with code 2 that leaves no file."""
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(tmp_path / "A.npy", rows)
    given = ["plan", "--anchors", "A.npy", "--positives", "A.npy", "--batch-size", 8, "--planner"]
    done = run(*given, "bisect", "--out", "order.npy", cwd=tmp_path)
    assert (0, 1) == (done.returncode, len(done.stdout.splitlines())), done.stderr
    assert list(range(40)) == sorted(np.load(tmp_path / "order.npy").tolist())
    done = run(*given, "bogus", "--out", "none.npy", cwd=tmp_path)
    assert (2, "", 1) == (done.returncode, done.stdout, len(done.stderr.splitlines()))
    assert done.stderr.startswith("gcbs-st plan: error: planner: got 'bogus'")
    assert ["A.npy", "order.npy"] == sorted(os.listdir(tmp_path))


def test_the_end_of_training_names_what_comes_next(tmp_path, monkeypatch, capsys):
    """The page is of the last run that was planned; the lines can be pasted, whatever the folder is called."""
    monkeypatch.setattr(shell.shutil, "which", lambda name: "/bin/gcbs-st")
    records = {"before": {}, "random": {"plans": 0}, "gcbs": {"plans": 3}, "late": {"plans": 0}}
    output = tmp_path / "my runs; $HOME"
    inspect, report = [shlex.split(line.split(": ", 1)[1]) for line in next_steps(records, output).splitlines()]
    assert ["gcbs-st", "inspect", "--run", str(output / "gcbs"), "--out", str(output / "batches.html")] == inspect
    assert ["gcbs-st", "report", str(output), "--out", str(output / "report")] == report
    del records["gcbs"]
    assert str(output / "late") in shlex.split(next_steps(records, output).splitlines()[0])
    for words in (inspect, report):
        with pytest.raises(SystemExit):
            main([words[1], "--help"])
        options = capsys.readouterr().out
        assert [] == [word for word in words if word.startswith("--") and word not in options]


def test_a_program_that_is_not_on_the_path_is_named_by_its_place(tmp_path, monkeypatch):
    """`make quickstart` activates no environment: the line that it ends with works all the same."""
    monkeypatch.setattr(shell.shutil, "which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert ".venv/bin/python -m gcbs_st.cli inspect" == shell.call_of("inspect")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "gcbs-st").touch()
    assert ".venv/bin/gcbs-st inspect" == shell.call_of("inspect")
