"""Pairs from docstrings: what is read, what counts as prose, and how the result is kept."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcbs_st.corpora import installed as distributions
from gcbs_st.corpora.docstring_pairs import load_docstring_pairs, pair_of_docstring, pairs_of_source, unique_pairs
from gcbs_st.corpora.installed import find_distributions, parse_files, python_files

SUMMARY = "Return the sum of all the numbers."
PARAGRAPH = "The numbers are added from left to right, so the last one is added at the end."
PAIR = (SUMMARY, PARAGRAPH)
SOURCE = f'"""{SUMMARY}\n\n{PARAGRAPH}\n"""\n'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache of each test apart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gcbs_st"


def install(site: Path, name: str, files: dict[str, str | bytes], version: str = "1.0") -> list[str]:
    """Write a distribution as an installer leaves it, and return the search path that finds it."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file, text in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_bytes(text.encode() if isinstance(text, str) else text)
    return [str(site)]


def test_module_class_method_and_function_are_read() -> None:
    """Every kind of definition gives its pair, also with a long signature, decorators and nesting."""
    nouns = ["module", "class", "method", "coroutine", "inner"]
    texts = {noun: f"Describe the {noun} in few words.\n\n    {PARAGRAPH[:-1]} of the {noun}.\n    " for noun in nouns}
    source = (
        f'# comment\n"""{texts["module"]}"""\nimport os\n\n@decorator\nclass A(B):\n    r"""{texts["class"]}"""\n\n'
        f'    def m(self,\n          x: int = 3,\n    ) -> int:\n        """{texts["method"]}"""\n        return 1\n\n'
        f"async def f():\n    '''{texts['coroutine']}'''\n    if 1:\n        def g(x): \n"
        f'            """{texts["inner"]}"""\n'
    )
    expected = {(f"Describe the {noun} in few words.", f"{PARAGRAPH[:-1]} of the {noun}.") for noun in nouns}
    assert expected == set(pairs_of_source(source))


def test_other_strings_are_not_docstrings() -> None:
    """A string that is assigned, or follows another statement, gives nothing."""
    text = SOURCE.strip()
    assert [] == list(pairs_of_source(f"x = {text}\n\ndef f():\n    x = 1\n    {text}\n\nif x:\n    {text}\n"))


def test_quotes_inside_code_do_not_hide_later_docstrings() -> None:
    """An odd number of triple quotes before a docstring does not shift what is read."""
    assert [PAIR] == list(pairs_of_source(f'X = \'"""\'\n\ndef f():\n    {SOURCE}'))


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (f"{SUMMARY}\n\n{PARAGRAPH}\n\nMore text.", PAIR),
        (f"{SUMMARY} {PARAGRAPH}", PAIR),
        (f"{SUMMARY}\n{PARAGRAPH}\n:param x: a number", PAIR),
        (f"{SUMMARY}\n\n.. versionadded:: 1.2\n\n{PARAGRAPH}", PAIR),
        (f"{SUMMARY}\n\nExplanation\n===========\n\n{PARAGRAPH}", PAIR),
        (f"{SUMMARY}\n\nParameters\n----------\nx : int\n    A number.\n\nNotes\n-----\n{PARAGRAPH}", PAIR),
        (f"{SUMMARY}\n\n{PARAGRAPH} For example::\n\n    f(1)", PAIR),
        (f"{SUMMARY}\n\n{PARAGRAPH} They can be any of these:\n- whole numbers", PAIR),
        (SUMMARY.replace("sum", "``sum``") + "\n\n" + PARAGRAPH.replace("numbers", ":class:`~a.b.numbers`"), PAIR),
        (SUMMARY.replace("sum", "[`sum`]") + "\n\n" + PARAGRAPH.replace("left", "**left**"), PAIR),
        (SUMMARY + "\n\n" + PARAGRAPH.replace(" to ", "\nto "), PAIR),
    ],
)
def test_prose_is_found(docstring: str, expected: tuple[str, str]) -> None:
    """The summary and the prose after it are found through wrapped lines, markup, directives and headings."""
    assert expected == pair_of_docstring(docstring)


@pytest.mark.parametrize(
    "follows",
    [
        "",
        "Args:\n    x: a number that is added to all the others.",
        "Parameters\n----------\nx : int\n    A number that is added to all the others.",
        ":param x: a number that is added to all of the others.",
        "Returns: the number that is the sum of all the others.",
        ">>> add(1, 2) is a call that returns the sum of the numbers.",
        "- a list item that has enough words in it to be a paragraph.",
        "| a | table | that | has | enough | words | in it | to be read |",
        "x = 1 is set and y = 2 is set in the code of the function.",
        "See the documentation of the other function for the details.",
        "Too few words.",
        "Copyright of the authors, who have all the rights that there are.",
        "Die Zahlen werden von links nach rechts addiert, die letzte zuletzt.",
        "数字是从左到右相加的 所以 最后一个 数字 是 在 最后 加上 的.",
        "word " * 120 + "is the end of it.",
        "The sentence that is here has no end because it goes on",
    ],
)
def test_what_is_not_prose_is_left_out(follows: str) -> None:
    """Sections, fields, doctests, lists, tables, code, pointers, licences and other languages give no pair."""
    assert pair_of_docstring(f"{SUMMARY}\n\n{follows}") is None


def test_files_are_never_imported(tmp_path: Path) -> None:
    """A module that would write a file and raise when imported is read without either."""
    touched = tmp_path / "touched"
    source = f"{SOURCE}open({str(touched)!r}, 'w').close()\nraise SystemExit\n"
    assert [PAIR] == load_docstring_pairs(distributions_path=install(tmp_path / "site", "loud", {"loud.py": source}))
    assert not touched.exists()


def test_unreadable_files_are_skipped(tmp_path: Path) -> None:
    """A syntax error, bytes that are not UTF-8, deep nesting and a missing file do not stop the others."""
    files = {
        "a/syntax.py": "def f(:\n    " + SOURCE,
        "a/bytes.py": b'"""\xff\xfe"""',
        "a/deep.py": f"def f(x={'(' * 5000}{')' * 5000}):\n    {SOURCE}",
        "a/good.py": SOURCE,
        "a/gone.py": "",
    }
    path = install(tmp_path / "site", "mixed", files)
    (tmp_path / "site" / "a" / "gone.py").unlink()
    assert [PAIR] == load_docstring_pairs(distributions_path=path)


def test_tests_vendored_packages_and_this_package_are_left_out(tmp_path: Path) -> None:
    """Only a distribution's own code is read, and never the code of gcbs_st."""
    skipped = ["a/tests/x.py", "a/_vendor/x.py", "a/test_x.py", "a/conftest.py", "a/x.txt", "../bin/x.py"]
    path = install(tmp_path / "site", "a", dict.fromkeys(skipped, SOURCE))
    install(tmp_path / "site", "gcbs_st", {"gcbs_st/x.py": SOURCE})
    assert [] == load_docstring_pairs(distributions_path=path)
    assert ["a"] == list(find_distributions(None, path))


def test_several_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many files are shared among processes; one that cannot be read is skipped there as well."""
    numbers = ["one", "two", "three", "four", "five"]
    files = {f"a/{number}.py": SOURCE.replace("numbers", f"{number} numbers") for number in numbers}
    path = install(tmp_path / "site", "a", {**files, "a/bytes.py": b'"""\xff\xfe"""'})
    paths = list(python_files(find_distributions(None, path).values()))
    alone = parse_files(paths, pairs_of_source)
    monkeypatch.setattr(distributions, "FILES_WORTH_PROCESSES", 2)
    monkeypatch.setattr(distributions, "FILES_AT_A_TIME", 1)
    monkeypatch.setattr(distributions.joblib, "cpu_count", lambda: 2)
    assert alone == parse_files(paths, pairs_of_source)
    assert {f"Return the sum of all the {number} numbers." for number in numbers} == {summary for summary, _ in alone}
    assert set() == parse_files([], pairs_of_source)


def test_each_text_is_kept_once() -> None:
    """A summary or paragraph that differs in case or white space only is a duplicate."""
    pairs = [("A b", "c"), ("a  B", "d"), ("e", "C"), ("f", "g")]
    assert [("A b", "c"), ("f", "g")] == unique_pairs(pairs)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "A", "b", "c"]), st.sampled_from(["x", "X ", "y", "z"]))), st.randoms()
)
def test_order_of_pairs_does_not_matter(pairs: list[tuple[str, str]], random: object) -> None:
    """Any order of the same pairs gives the same sorted list, with each text once on its side."""
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    kept = unique_pairs(pairs)
    assert kept == unique_pairs(shuffled)
    assert kept == sorted(kept)
    for side in zip(*kept, strict=True):
        assert len(side) == len({text.lower().strip() for text in side})


def test_distributions_are_chosen_by_any_spelling_of_their_name(tmp_path: Path) -> None:
    """`distributions` restricts what is read; case, dots and underscores of the name do not matter."""
    path = install(tmp_path / "site", "My_Package", {"a.py": SOURCE})
    install(tmp_path / "site", "other", {"b.py": SOURCE.replace("sum", "product").replace("added", "multiplied")})
    assert [PAIR] == load_docstring_pairs(["my.package"], distributions_path=path)
    assert 2 == len(load_docstring_pairs(distributions_path=path))


def test_unknown_distribution_is_named(tmp_path: Path) -> None:
    """The message says which distribution is not installed and which are."""
    path = install(tmp_path / "site", "a", {"a.py": SOURCE})
    with pytest.raises(ValueError, match=r"got distributions \['nonesuch'\] that are not installed; .*\['a'\]"):
        load_docstring_pairs(["nonesuch"], distributions_path=path)


def test_pairs_are_kept_until_a_version_changes(tmp_path: Path, cache: Path) -> None:
    """The second call reads the cache file and no source; another version is read anew."""
    path = install(tmp_path / "site", "a", {"a.py": SOURCE})
    expected = load_docstring_pairs(distributions_path=path)
    (tmp_path / "site" / "a.py").unlink()
    assert expected == load_docstring_pairs(distributions_path=path)
    assert 1 == len(list(cache.iterdir()))
    (tmp_path / "site" / "a-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: a\nVersion: 2.0\n")
    assert [] == load_docstring_pairs(distributions_path=path)


@pytest.mark.parametrize("damage", ["", "[[", "{}", "[[1, 2]]", '[["a"]]', "3", "[3]"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, cache: Path, damage: str) -> None:
    """A cache file that is not a list of pairs of strings is ignored and written again."""
    path = install(tmp_path / "site", "a", {"a.py": SOURCE})
    expected = load_docstring_pairs(distributions_path=path)
    (file,) = cache.iterdir()
    file.write_text(damage)
    assert expected == load_docstring_pairs(distributions_path=path)
    assert [list(PAIR)] == json.loads(file.read_text())


def test_unwritable_cache_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no cache can be written the pairs are returned all the same, and the log says so."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = install(tmp_path / "site", "a", {"a.py": SOURCE})
    with caplog.at_level(logging.INFO, "gcbs_st"):
        assert [PAIR] == load_docstring_pairs(distributions_path=path)
    assert "not cached" in caplog.text
    assert "found 1 docstring pairs" in caplog.text
