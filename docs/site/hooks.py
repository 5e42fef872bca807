"""What the site has beyond the pages of docs/: README.md, CHANGELOG.md, the examples and the API; and links that hold in both.

On GitHub the pages link to each other and to files of the repository by relative paths. Here a link to what is a page of
the site leads to that page, and one to any other file of the repository becomes its text.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Repository file -> page of the site, of what is not in docs/.
PAGES = {"README.md": "readme.md", "CHANGELOG.md": "changes.md"}
API = {
    "gcbs_st": "The trainers, their arguments, and a loss for small batches.",
    "gcbs_st.losses": "Losses for composed batches, and losses that keep a state for each row.",
    "gcbs_st.planners": "The protocol of a planner, those that there are, and how one is found by its name.",
}
# What comes first on a page; the other public names follow as they stand in `__all__`.
FIRST = {
    "gcbs_st": [
        "gcbs_st.GCBSTrainer",
        "gcbs_st.training.planned_training.PlannedTraining.plan_batches",
        "gcbs_st.GCBSTrainingArguments",
        "gcbs_st.training.arguments.PlanningArguments",
    ],
    "gcbs_st.planners": ["gcbs_st.planners.Planner", "gcbs_st.planners.Planner.plan"],
}
# Code comes first, so that what looks like a link in it is left alone; a link's text may be code.
_CODE_OR_LINK = re.compile(
    r"^```.*?^```[ ]*$|(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<file>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)|`[^`]+`",
    flags=re.DOTALL | re.MULTILINE,
)


def on_config(config: Any) -> Any:
    """Adds the examples and the API to the navigation, and gives headings the anchors that GitHub gives them."""
    config.nav[3:3] = [{"Examples": list(example_pages().values())}] if example_pages() else []
    config.nav[-1:-1] = [{"API": [{name: f"api/{name}.md"} for name in API]}]
    config.mdx_configs.setdefault("toc", {})["slugify"] = anchor_of
    return config


def anchor_of(heading: str, separator: str) -> str:
    """Returns the anchor of a heading as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def example_pages() -> dict[str, str]:
    """Returns the page of each example's README, the list of all of them first."""
    files = sorted((ROOT / "examples").glob("**/README.md"), key=lambda file: (len(file.parts), file))
    return {str(file.relative_to(ROOT)): str(file.relative_to(ROOT).with_name("index.md")) for file in files}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that do not lie in docs/."""
    for source, page in {**PAGES, **example_pages()}.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for name, what in API.items():
        files.append(File.generated(config, f"api/{name}.md", content=api_page(name, what)))
    return files


def api_page(name: str, what: str) -> str:
    """Returns a page with the docstrings of all public names of a module."""
    public = [f"{name}.{each}" for each in public_names(name) if not each.startswith("__")]
    paths = dict.fromkeys([*FIRST.get(name, []), *public])
    return "\n".join([f"# `{name}`\n", f"{what}\n", *(f"::: {path}\n" for path in paths)])


def public_names(name: str) -> list[str]:
    """Returns `__all__` of a module, which is read and not imported: that takes seconds."""
    tree = ast.parse((ROOT / name.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    assigned = {ast.unparse(line.targets[0]): line.value for line in tree.body if isinstance(line, ast.Assign)}
    return list(ast.literal_eval(assigned["__all__"]))


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Returns a page's text with links that hold on the site."""
    markdown = re.sub(r"\s*\bBack to the\s+\[README\]\([./]*README\.md\)\.", "", markdown)
    # Text inside HTML is taken as it is unless it says that it is Markdown.
    markdown = markdown.replace("<details>", '<details markdown="1">')
    return _CODE_OR_LINK.sub(lambda found: link_on_site(found, page, files), markdown)


def link_on_site(found: re.Match[str], page: Page, files: Files) -> str:
    """Returns a link of a page of the repository as the site has it; what leads nowhere is left for mkdocs to refuse."""
    file = found["file"]
    if not file or re.match(r"[a-z]+:", file):  # code, an anchor of the same page, or the web
        return found[0]
    moved = {**PAGES, **example_pages()}
    source = {site: source for source, site in moved.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), file))
    on_site = moved.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
    if on_site is not None and files.get_file_from_path(on_site):
        here = posixpath.dirname(page.file.src_uri)
        return f"{found['text']}({posixpath.relpath(on_site, here or '.')}{found['anchor'] or ''})"
    return found["text"].lstrip("!")[1:-1] if (ROOT / target).exists() else found[0]
