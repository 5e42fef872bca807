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
    """Returns a page about batches.

    Args:
        content: what `gcbs_st.reports.inspection.inspector.inspect_plan` returns, with "plans" from `gcbs_st.reports.inspection.plan_table.plan_table` and
            "origin" (label -> text) where there are such.
        charts: title -> PNG.

    Returns:
        The page, in UTF-8 if it is written to a file.

    Raises:
        ValueError: numbers that JSON cannot hold.

    Example:
        >>> "<b>" in batches_page({"title": "<b>"})
        False
    """
    pictures = [
        {"title": title, "data": f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"}
        for title, picture in (charts or {}).items()
    ]
    return _fill("batches.html", "batches.css", "batches.js", str(content["title"]), {**content, "charts": pictures})


def embed_json(content: Any) -> str:
    """Returns JSON that may stand inside a `<script type="application/json">`, whatever it holds.

    Args:
        content: what `json.dumps` takes.

    Returns:
        JSON without `<`, `>`, `&`, and anything that UTF-8 cannot write.

    Raises:
        ValueError: NaN or infinity.
    """
    dumped = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", dumped)


def _fill(page: str, style: str, script: str, title: str, content: Any) -> str:
    """The template with its parts; the policy names the one style and the one script by their hashes."""
    parts = {
        name: (files("gcbs_st.reports.inspection") / "templates" / name).read_text(encoding="utf-8")
        for name in (page, style, script)
    }
    values = {
        "TITLE": html.escape(title.encode("utf-8", "replace").decode()),
        "STYLE": parts[style],
        "SCRIPT": parts[script],
        "STYLE_HASH": _hash(parts[style]),
        "SCRIPT_HASH": _hash(parts[script]),
        "CONTENT": embed_json(content),
    }
    # In one pass, so that nothing in a value is taken for a place.
    return re.sub(r"\{\{([A-Z_]+)\}\}", lambda match: values[match[1]], parts[page])


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
