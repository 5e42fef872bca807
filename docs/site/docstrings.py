"""Docstrings as the site's parser of them wants them: examples in a section of that name, no "::" before a block of code."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_BARE_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", flags=re.MULTILINE)


class HouseDocstrings(griffe.Extension):
    """Rewrites each docstring that is read; it is shown otherwise as quotations within quotations."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Makes sections of "Example:" and of examples without a heading, and of "::" a single colon."""
        if obj.docstring is not None:
            text = _BARE_EXAMPLE.sub(in_section, obj.docstring.value)
            text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def in_section(example: re.Match[str]) -> str:
    """Returns an example under a heading, which it is indented below."""
    return "Examples:\n" + textwrap.indent(example[0], "    ")
