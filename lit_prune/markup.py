"""Texts that others wrote, in files and on terminals: never markup, never what moves a cursor."""

from __future__ import annotations

import re
import unicodedata


def clean(text: str) -> str:
    """Lines ended by newlines, without what files cannot hold or what would move a terminal's cursor."""
    return "\n".join("".join(_harmless(each) for each in line) for line in text.splitlines())


def markdown_inline(text: str) -> str:
    r"""The text as one line of Markdown that shows it as it is.

    Example:
        >>> print(markdown_inline("*bold* <b> a|b one_shot"))
        \*bold\* \<b\> a\|b one_shot
    """
    line = " ".join(clean(text).split("\n"))
    line = re.sub(r"([\\`*\[\]<>&|~$])", r"\\\1", line)
    # Inside a word an underscore is no markup, and an escaped one hard to read in the file.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)


def markdown_line(text: str) -> str:
    r"""Escaped also for the beginning of a line, where numbers, dashes and the like are lists and headings.

    Example:
        >>> print(markdown_line("1. *bold* <b> a|b one_shot"))
        1\. \*bold\* \<b\> a\|b one_shot
    """
    return re.sub(r"^(\d*)([#+\-=.)])", r"\1\\\2", markdown_inline(text))


def _harmless(character: str) -> str:
    return "\ufffd" if unicodedata.category(character) in ("Cc", "Cs") and character != "\t" else character
