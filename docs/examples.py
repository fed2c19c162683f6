"""Examples of docstrings as listings: an extension of griffe, which reads them for the site."""

from __future__ import annotations

import re
from textwrap import indent
from typing import Any

import griffe


class Examples(griffe.Extension):
    """griffe takes `Example:` for a remark; doctests are listings in the section that it calls `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section, and fence code that is no doctest."""
        if obj.docstring:
            text = re.sub(r"^Example::\n\n((?: {4}.*\n?|\n)+)", _fenced, obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def _fenced(found: re.Match[str]) -> str:
    code = re.sub(r"^ {4}", "", found[1], flags=re.MULTILINE).strip()
    return "Examples:\n" + indent(f"```python\n{code}\n```\n", "    ")
