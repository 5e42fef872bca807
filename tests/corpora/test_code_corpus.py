"""The corpus `code`: which functions are taken, without what, split how, and each text once."""

from __future__ import annotations

import ast
import json
import random
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_docstrings import install

from gcbs_st.corpora import code_pairs as code_corpus
from gcbs_st.corpora.code_pairs import load_code_pairs, pairs_of_source, split_of, unique_rows
from gcbs_st.corpora.corpus import load_corpus
from gcbs_st.corpora.near_duplicates import WORD, near_duplicate_pairs, without_later

SUMMARY = "Return the sum of all the numbers."
BODY = "total = start\nfor number in numbers:\n    total += number\nreturn total"
FUNCTION = f"def add(numbers, start=0):\n{textwrap.indent(BODY, '    ')}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache of each test apart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gcbs_st"


def source(name: str = "add", docstring: str = SUMMARY, body: str = BODY, header: str = "def {}(numbers, start=0):"):
    """A function with a docstring."""
    quoted = f'"""{docstring}"""'
    return f"{header.format(name)}\n{textwrap.indent(f'{quoted}{chr(10)}{body}', '    ')}\n"


def numbered(number: int) -> str:
    """A function that shares few words with that of another number."""
    words = [f"{word}{number}" for word in ("apple", "pear", "plum", "quince", "grape", "melon")]
    summary = f"Return the {words[0]} of {words[1]} and {words[2]} with {words[3]}."
    summary = summary.replace(str(number), "abcdefghij"[number % 10] * (1 + number // 10))
    return source(
        words[4], summary, f"{words[0]} = {words[1]}({words[2]})\n{words[3]} += {words[0]}\nreturn {words[5]}"
    )


# ---------------------------------------------------------------- which functions, and what of them


def test_functions_of_every_kind_come_without_their_docstrings() -> None:
    """Plain, nested, asynchronous, decorated, in classes, with long signatures: from `def` on, not indented."""
    texts = {
        "plain": "def plain(numbers, start=0):",
        "slow": "async def slow(\n    numbers: list[int],\n    start: int = 0,\n) -> int:",
        "method": "def method(self, numbers, start=0):",
    }
    plain, slow, method = (source(name, header=header) for name, header in texts.items())
    inner = textwrap.indent(f"@decorator(\n    1\n)\n{method}", "    ")
    module = f'"""Describe the module in few words."""\nimport os\n\n\n{plain}\n\n@cached\n{slow}\n\nclass A:\n{inner}\nx = 1\n'
    ast.parse(module)
    expected = [(SUMMARY, text.replace(f'    """{SUMMARY}"""\n', "").rstrip("\n")) for text in (plain, slow, method)]
    assert expected == list(pairs_of_source(module))


def test_a_nested_function_is_a_pair_of_its_own() -> None:
    """The outer function keeps the inner one whole, docstring and all."""
    inner = source("inner", "Return what the inner part adds up to.")
    outer = source("outer", body=f"{inner}x = inner\ny = x\nreturn y")
    pairs = dict(pairs_of_source(outer))
    assert ["Return the sum of all the numbers.", "Return what the inner part adds up to."] == sorted(pairs)
    assert inner.splitlines()[1].strip() in pairs[SUMMARY]


@given(st.sampled_from(['"""', "'''"]), st.sampled_from(["", "r", "U"]), st.integers(0, 3), st.booleans())
def test_what_is_left_is_what_the_parser_says(quotes: str, prefix: str, depth: int, comments: bool) -> None:
    """The function parses to the same tree as before, less the docstring, however deep it stands."""
    comment = "# not further right than the header\n" if comments else ""
    text = f'def f(a,\n      b=")"):\n    {prefix}{quotes}{SUMMARY}\n\n    More of it.\n    {quotes}\n    s = """\n    x\n    """\n\n    return s\n'
    text = text.replace("    return s\n", f"{'@@'}    return s\n")
    whole = "".join(f"{'    ' * level}if x{level}:\n" for level in range(depth)) + textwrap.indent(
        text, "    " * depth
    )
    whole = whole.replace("    " * depth + "@@", comment + "    " * depth) + "y = 1\n"
    ((summary, function),) = pairs_of_source(whole)
    node = next(node for node in ast.walk(ast.parse(whole)) if isinstance(node, ast.FunctionDef))
    node.body = node.body[1:]
    assert SUMMARY == summary
    # A string over several lines is indented with the code that it stands in.
    assert ast.dump(node).replace(r"\n" + "    " * depth, r"\n") == ast.dump(ast.parse(function).body[0])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (source("test_add"), "a test"),
        (source("run_tests"), "a test"),
        (source("__init__"), "a constructor"),
        (source("__str__"), "a special method"),
        (source(docstring="Add numbers."), "a summary of two words"),
        (source(docstring="Add, and see https://example.org for more."), "a link"),
        (source(docstring="Berechnet aus allen gegebenen Zahlen schnell deren gemeinsame Summe."), "not English"),
        (source(docstring="返回所有数字的总和 并且 检查 它们"), "not English"),
        (source(body="return 1"), "two lines"),
        (source(body="pass\n\n\n\n"), "a stub"),
        (source(body='raise NotImplementedError(\n    "sub-classes do this"\n)'), "a stub"),
        (source(body="..."), "a stub"),
        (source(body="x = 1\n" * 300), "hundreds of lines"),
        ("# Automatically generated by protoc. DO NOT EDIT.\n" + source(), "generated"),
        (source().replace("def add", "class add").replace("(numbers, start=0)", ""), "a class"),
        (f'def add(x): """{SUMMARY}"""; y = x; return y\n', "in one line"),
        (f'def add(x):\n    y = """{SUMMARY}"""\n    z = y\n    return z\n', "no docstring"),
        (f'def add(x):\n    if x:\n        """{SUMMARY}"""\n    z = x\n    return z\n', "no docstring"),
        (source().replace("return total", "return total)"), "not Python"),
        (source(body='s = """\nleft\n"""\nreturn s').replace("    left", "left"), "a string further left"),
        ("", "nothing"),
        ('"""', "half a string"),
        (f'def add(x):\n    """{SUMMARY}', "half a docstring"),
        ("x = 1\n", "no function"),
    ],
)
def test_what_is_no_pair_is_left_out(text: str, why: str) -> None:
    """Tests, special methods, short, generated, foreign and broken ones give nothing, and raise nothing."""
    assert [] == list(pairs_of_source(text)), why


def test_a_broken_neighbour_does_no_harm() -> None:
    """A syntax error elsewhere in the file does not lose a function."""
    assert [(SUMMARY, FUNCTION)] == list(pairs_of_source(f"def f(:\n    pass\n\n{source()}\nx = = 1\n"))


@given(st.text(alphabet="def ():\"'\n\t #xr.é\x00\\{", max_size=200))
def test_hostile_sources_raise_nothing(text: str) -> None:
    """Whatever a file holds, it gives pairs or none."""
    for summary, function in pairs_of_source(source() + text):
        assert summary.strip() and ast.parse(function)


# ---------------------------------------------------------------- near-duplicates


def jaccard(first: str, second: str) -> float:
    """The similarity by its definition."""
    one, two = ({*WORD.findall(text.lower())} for text in (first, second))
    return len(one & two) / len(one | two) if one | two else 0.0


@given(
    st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=9).map(" ".join), max_size=25),
    st.sampled_from([0.1, 0.5, 0.75, 0.8, 1.0]),
)
def test_near_duplicates_are_those_of_the_definition(texts: list[str], threshold: float) -> None:
    """All pairs above the threshold and no others, also of empty, equal and no texts, and of pairs right at it."""
    expected = [
        [i, j]
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
        if jaccard(texts[i], texts[j]) >= threshold - 1e-9
    ]
    assert expected == near_duplicate_pairs(texts, threshold).tolist()


def test_case_does_not_make_texts_differ() -> None:
    """As words are counted; a text without words is like no other."""
    assert [[0, 1]] == near_duplicate_pairs(["Add the Numbers", "add THE numbers", "", "--"], 0.9).tolist()


def test_near_duplicates_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes where the products are made in pieces."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices([f"w{i}" for i in range(12)], k=6)) for _ in range(60)]
    whole = near_duplicate_pairs(texts, 0.5)
    monkeypatch.setattr("gcbs_st.corpora.near_duplicates._BLOCK", 7)
    np.testing.assert_array_equal(whole, near_duplicate_pairs(texts, 0.5))
    assert len(whole) > 20


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, float("nan")])
def test_an_impossible_threshold_is_refused(threshold: float) -> None:
    """It is a share of words above none."""
    with pytest.raises(ValueError, match="got threshold .*, expected above 0 and at most 1"):
        near_duplicate_pairs(["a"], threshold)


def test_a_row_goes_only_for_one_that_stays() -> None:
    """Of a chain a-b-c, of which only neighbours are alike, a and c stay."""
    assert [True, False, True, True] == without_later(4, np.array([[1, 2], [0, 1]])).tolist()
    assert [True] == without_later(1, np.empty((0, 2), dtype=np.int64)).tolist()
    assert [] == without_later(0, np.empty((0, 2), dtype=np.int64)).tolist()


def test_test_keeps_what_train_holds_too() -> None:
    """Neither side of a row is that of an earlier one, nearly; test goes before dev, dev before train."""
    words = "one two three four five six seven eight nine ten".split()
    near = " ".join([*words[:9], "eleven"])  # 9 of 11 words are common
    rows = [
        ("train", "a", "Equal summary.", " ".join(words)),
        ("dev", "b", "Another summary.", near),
        ("test", "z", "equal  SUMMARY", "something else"),
        ("train", "c", "A third one.", "a third function"),
    ]
    expected = [rows[2], rows[1], rows[3]]
    assert expected == unique_rows(rows)
    assert expected == unique_rows([*reversed(rows), *rows])
    assert [] == unique_rows([])


# ---------------------------------------------------------------- distributions and splits


def names_of(split: str, count: int) -> list[str]:
    """Names of distributions that belong to a split."""
    return [name for number in range(1000) if split_of(name := f"package-{number}") == split][:count]


def test_a_distribution_is_in_one_split_for_good() -> None:
    """The shares are near 15, 10 and 75 of 100, and the split of some names is what it always was."""
    splits = [split_of(f"package-{number}") for number in range(4000)]
    shares = {split: splits.count(split) / 4000 for split in set(splits)}
    assert shares == pytest.approx({"test": 0.15, "dev": 0.1, "train": 0.75}, abs=0.02)
    recorded = {"torch": "train", "scipy": "test", "matplotlib": "dev", "numpy": "train"}
    assert recorded == {name: split_of(name) for name in recorded}


def test_packages_are_split_and_kept_apart(tmp_path: Path) -> None:
    """Each distribution's functions are in its split, sorted; files are parsed and not run."""
    names = {split: names_of(split, 2) for split in ("train", "dev", "test")}
    for place, two in enumerate(names.values()):
        for second, name in enumerate(two):
            text = numbered(2 * place + second) + "raise SystemExit\n"
            install(
                tmp_path / "site", name, {f"{name}.py": text, f"{name}_pb2.py": numbered(9), "tests/x.py": numbered(8)}
            )
    splits = load_code_pairs(distributions_path=[str(tmp_path / "site")])
    expected = {
        split: [next(pairs_of_source(numbered(2 * place + second))) for second in (0, 1)]
        for place, split in enumerate(names)
    }
    by_name = {split: [pair for _, pair in sorted(zip(names[split], expected[split], strict=True))] for split in names}
    assert by_name == splits
    only = load_code_pairs([names["dev"][1]], distributions_path=[str(tmp_path / "site")])
    assert {"train": [], "dev": expected["dev"][1:], "test": []} == only


def test_parsing_is_kept_for_each_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call reads no source; a further distribution has only its own read."""
    parsed = []
    original = code_corpus._parse
    monkeypatch.setattr(code_corpus, "_parse", lambda of: parsed.append(of.metadata["Name"]) or original(of))
    path = install(tmp_path / "site", "first", {"first.py": numbered(1)})
    before = load_code_pairs(distributions_path=path)
    assert before == load_code_pairs(distributions_path=path)
    install(tmp_path / "site", "second", {"second.py": numbered(2)})
    both = load_code_pairs(distributions_path=path)
    assert ["first", "second"] == parsed
    assert 2 == sum(map(len, both.values())) == 1 + sum(map(len, before.values()))
    (tmp_path / "site" / "first-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: first\nVersion: 2\n"
    )
    load_code_pairs(distributions_path=path)
    assert ["first", "second", "first"] == parsed


@pytest.mark.parametrize("damage", ["", "[[", "{}", "[[1, 2]]", '[["a", "b", "c"]]', '[["a", "b", "c", 4]]', "3"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, cache: Path, damage: str) -> None:
    """Files that do not hold rows of texts are ignored and replaced."""
    path = install(tmp_path / "site", "a", {"a.py": numbered(1)})
    expected = load_code_pairs(distributions_path=path)
    files = sorted(cache.iterdir())
    assert 2 == len(files)
    for file in files:
        file.write_text(damage)
    assert expected == load_code_pairs(distributions_path=path)
    assert [2, 4] == sorted(len(json.loads(file.read_text())[0]) for file in files)


def test_the_corpus_is_rows_of_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_corpus("code")` gives summaries as anchors; max_rows takes rows from everywhere; mistakes are named."""
    (name,) = names_of("dev", 1)
    path = install(tmp_path / "site", name, {f"m{number}.py": numbered(number) for number in range(9)})
    monkeypatch.syspath_prepend(path[0])
    rows = load_corpus("code", split="dev", distributions=[name])
    pairs = load_code_pairs([name])["dev"]
    assert (9, pairs) == (len(rows), list(zip(rows["anchor"], rows["positive"], strict=True)))
    few = load_corpus("code", split="dev", distributions=[name], max_rows=3)
    assert [pairs[0][0], pairs[4][0], pairs[8][0]] == list(few["anchor"])
    with pytest.raises(ValueError, match=r"got no pair in the split 'train' of 'code' \(test 0, dev 9, train 0\)"):
        load_corpus("code", distributions=[name])
    with pytest.raises(ValueError, match="got split 'validation' of 'code', expected one of dev, test, train"):
        load_corpus("code", split="validation", distributions=[name])
    with pytest.raises(ValueError, match="got distributions .*no-such.* that are not installed"):
        load_corpus("code", distributions=["no-such"])
    with pytest.raises(ValueError, match="got data_files='x' of 'code', expected a data set on the hub"):
        load_corpus("code", data_files="x")


def test_tokens_become_texts(tmp_path: Path) -> None:
    """Columns of lists of strings, as in CodeSearchNet's files, are joined; an empty list is a blank text."""
    rows = [
        {"d": ["sum", "it"], "c": ["a", "+", "b"]},
        {"d": ["x"], "c": []},
        {"d": ["y", ""], "c": ["c"]},
        {"d": None, "c": ["d"]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load_corpus(str(tmp_path / "rows.jsonl"), columns=["d", "c"])
    assert {"anchor": ["sum it", "y"], "positive": ["a + b", "c"]} == dataset.to_dict()
