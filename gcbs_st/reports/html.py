"""Content in, one HTML page out that needs nothing else: no network, no second file.

Texts are data. They reach the page as JSON that no markup can leave, and its script shows them as text alone. The
page's own policy forbids every other script, and every connection, besides.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

# U+2028 and U+2029 end a line in old JavaScript; halves of surrogate pairs are in no encoding.
_ESCAPED = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def batches_page(content: Mapping[str, Any], charts: Mapping[str, bytes] | None = None) -> str:
    """Returns a page about batches, to be written as UTF-8. Raises a ValueError for numbers that JSON cannot hold.

    `content` is what `inspector.inspect_plan` returns, perhaps with "plans" from `plan_table.plan_table` and "origin"
    (label -> text); `charts` maps titles to PNGs.

    >>> "<b>" in batches_page({"title": "<b>"})
    False
    """
    script = read_template("batches.js")
    pictures = [{"title": title, "data": png_uri(picture)} for title, picture in (charts or {}).items()]
    embedded = embed_json({**content, "charts": pictures})
    values = {"SCRIPT": script, "SCRIPT_HASH": _policy_hash(script), "CONTENT": embedded}
    return fill_page("batches.html", str(content["title"]), read_template("batches.css"), **values)


def fill_page(template: str, title: str, style: str, **values: str) -> str:
    """Returns a page of `templates`, whose policy allows this style alone; `values` are HTML already."""
    values |= {"TITLE": escape(title), "STYLE": style, "STYLE_HASH": _policy_hash(style)}
    # In one pass, so that nothing in a value is taken for a place.
    return re.sub(r"\{\{([A-Z_]+)\}\}", lambda match: values[match[1]], read_template(template))


def embed_json(content: Any) -> str:
    """Returns JSON that may stand inside a `<script type="application/json">`, whatever texts it holds.

    It has no `<`, `>`, `&`, and nothing that UTF-8 cannot write. Raises a ValueError for NaN and infinity.
    """
    dumped = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", dumped)


def escape(text: str) -> str:
    """Returns text for HTML; halves of surrogate pairs, which no encoding has, become question marks."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def png_uri(picture: bytes) -> str:
    """Returns a PNG as the source of an `<img>`."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"


def _policy_hash(text: str) -> str:
    """Returns how a Content-Security-Policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def read_template(name: str) -> str:
    """Returns the text of a file of `reports/inspection/templates`."""
    return (files("gcbs_st.reports.inspection") / "templates" / name).read_text(encoding="utf-8")
