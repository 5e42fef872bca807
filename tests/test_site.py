"""The site of `make docs`: built as there, strictly and without a network; its links, anchors and assets; what is on it."""

from __future__ import annotations

import importlib
import os
import posixpath
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("material", reason="the site needs the extra docs")
pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")

ROOT = Path(__file__).parent.parent
# mkdocs's own program, in a process that cannot connect to anything.
WITHOUT_NETWORK = """
import socket
def refuse(*_): raise OSError("the site's build asked for the network")
socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli()
"""
# What a browser loads by itself, and from which attribute.
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-c", WITHOUT_NETWORK, "build", "--strict", "-d", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (0, False) == (built.returncode, "WARNING" in built.stderr), built.stderr[-3000:]
    return folder


class Html(HTMLParser):
    """The anchors, links and loaded files of one page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get(LOADED.get(tag, "")):
            self.loaded.append(given[LOADED[tag]])


def is_external(address: str) -> bool:
    """Whether an address is of another host, or of the root of this one, where a site in a folder has nothing."""
    return re.match(r"([a-z]+:)?//|/|[a-z]+:(?!image/)", address) is not None


def wrong_in(folder: Path) -> list[str]:
    """What is wrong with a site: links and anchors that lead nowhere, and what is loaded from elsewhere."""
    pages = {page: Html(page) for page in folder.rglob("*.html") if page.name != "404.html"}
    wrong = []
    for page, html in pages.items():
        where = page.relative_to(folder)
        wrong += [f"{where} loads {address}" for address in html.loaded if is_external(address)]
        own = [address for address in [*html.links, *html.loaded] if not re.match(r"[a-z]+:", address)]
        for address in own:
            file, _, anchor = unquote(address).partition("#")
            target = (page.parent / file).resolve() if file else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (anchor and anchor not in pages[target].anchors):
                wrong.append(f"{where} links to {address}")
    for style in folder.rglob("*.css"):
        loaded = re.findall(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", style.read_text())
        wrong += [f"{style.name} loads {one}" for one in map("".join, loaded) if re.match(r"(https?:)?//", one)]
    return sorted(wrong)


def test_links_and_anchors_hold_and_nothing_is_loaded_from_elsewhere(site):
    """On every page, those of the API and of the changes among them."""
    assert [] == wrong_in(site)


def test_what_is_wrong_with_a_site_is_seen(tmp_path):
    """No such page, no such anchor, a script, a picture, a font of another host; links to the web are allowed."""
    (tmp_path / "style.css").write_text('@import "//fonts.org/a.css"; a { background: url(https://b.org/c.png) }')
    (tmp_path / "other.html").write_text('<h2 id="there">a</h2>')
    page = tmp_path / "page.html"
    good = (
        '<a href="other.html#there">a</a><a href="https://c.org">b</a><a href="#x" id="x">c</a><img src="style.css">'
    )
    page.write_text(good)
    assert ["style.css loads //fonts.org/a.css", "style.css loads https://b.org/c.png"] == wrong_in(tmp_path)
    (tmp_path / "style.css").write_text("a { background: url(page.html) }")
    assert [] == wrong_in(tmp_path)
    page.write_text('<a href="no.html">a</a><a href="other.html#no">b</a><script src="https://d.org/e.js"></script>')
    expected = ["page.html links to no.html", "page.html links to other.html#no", "page.html loads https://d.org/e.js"]
    assert expected == wrong_in(tmp_path)


def test_every_page_and_every_public_name_is_on_it(site):
    """The pages of docs/, the README, the changes, the READMEs of the examples, and what `__all__` names."""
    examples = [readme.parent.relative_to(ROOT) / "index" for readme in ROOT.glob("examples/**/README.md")]
    pages = ["readme", "changes", *(page.stem for page in ROOT.glob("docs/*.md")), *map(str, examples)]
    assert [] == [page for page in pages if not (site / f"{page}.html").exists()]
    for name in ("gcbs_st", "gcbs_st.losses", "gcbs_st.planners"):
        public = [f"{name}.{one}" for one in importlib.import_module(name).__all__ if not one.startswith("__")]
        assert [] == [one for one in public if one not in Html(site / "api" / f"{name}.html").anchors]
    assert "gcbs_st.planners.Planner.plan" in Html(site / "api" / "gcbs_st.planners.html").anchors


def test_examples_of_docstrings_are_shown_as_code(site):
    """What the house calls "Example:" is no quotation, and no colon is doubled."""
    text = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    assert ("blockquote" in text, "::</p>" in text, "Examples:" in text) == (False, False, True)


@pytest.fixture(scope="module")
def hooks():
    """The module that mkdocs calls while it builds."""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Named:
    """A page, or the files, of a site, as far as the hook asks."""

    def __init__(self, *names: str) -> None:
        self.names, self.file, self.src_uri = names, self, names[0]

    def get_file_from_path(self, name: str) -> str | None:
        return next((one for one in self.names if one == name), None)


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("training.md", "[a](planners.md#x)", "[a](planners.md#x)"),
        ("training.md", "[`a`\nb](../README.md#x)", "[`a`\nb](readme.md#x)"),
        ("training.md", "[a](../CHANGELOG.md)", "[a](changes.md)"),
        ("training.md", "[`quick`](../configs/quickstart.yaml) on", "`quick` on"),
        ("readme.md", "[a](docs/planners.md#x)", "[a](planners.md#x)"),
        ("readme.md", "![a](docs/plans.png)", "![a](plans.png)"),
        ("changes.md", "[a](docs/planners.md) [b](Makefile)", "[a](planners.md) b"),
        # Left for mkdocs to refuse, as there is no such file; and what is no link to a file.
        ("training.md", "[a](../no.md)", "[a](../no.md)"),
        ("training.md", "[a](https://b.org/README.md) [c](#d)", "[a](https://b.org/README.md) [c](#d)"),
        ("training.md", "`[a](../README.md)`\n```\n[b](../README.md)\n```\n", "`[a](../README.md)`\n```\n[b](../README.md)\n```\n"),
        ("training.md", "All. Back to the\n[README](../README.md).\n\nB", "All.\n\nB"),
    ],
)  # fmt: skip
def test_links_hold_on_github_and_on_the_site(hooks, page, link, expected):
    """A link that is right in the repository leads to the same page of the site, or becomes its text."""
    files = Named("readme.md", "changes.md", "planners.md", "training.md", "plans.png")
    assert expected == hooks.on_page_markdown(link, Named(page), files)


def test_links_of_an_example_hold(hooks, tmp_path, monkeypatch):
    """Its README lies two folders down; its script is no page."""
    (tmp_path / "examples" / "nli").mkdir(parents=True)
    for name in ("README.md", "train.py"):
        (tmp_path / "examples" / "nli" / name).write_text("# A\n")
    (tmp_path / "examples" / "README.md").write_text("# A\n")
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert ["examples/index.md", "examples/nli/index.md"] == list(hooks.example_pages().values())
    files = Named("examples/nli/index.md", "examples/index.md", "planners.md", "readme.md")
    link = "[a](train.py) [b](../README.md) [c](../../docs/planners.md#x) [d](../../README.md)"
    expected = "a [b](../index.md) [c](../../planners.md#x) [d](../../readme.md)"
    assert expected == hooks.on_page_markdown(link, Named("examples/nli/index.md"), files)


def test_it_opens_in_a_browser_without_a_network(site):
    """No message on the console and no request to another host, on the start page and on one of the API."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        assert os.environ.get("GCBS_ST_BROWSER") != "required"
        pytest.skip(f"needs chromium ({chromium}) and chromedriver ({driver})")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        for page in ("index.html", "concepts.html", posixpath.join("api", "gcbs_st.html")):
            browser.get((site / page).as_uri())
            loaded = browser.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
            assert [] == [address for address in loaded if not address.startswith(("file:", "data:"))]
            assert [] == browser.get_log("browser")
            assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        browser.quit()
