"""Texts that others wrote, in files and on terminals: never markup, never what moves a cursor."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Classes of characters that turn the direction in which others are shown."""


class Markdown(str):
    """Text that is Markdown already, so that nothing escapes it."""

    __slots__ = ()


def clean(text: str) -> str:
    """Take out of a text what no file can hold or what moves a terminal's cursor; lines end with newlines."""
    return "\n".join("".join(map(_harmless, line)) for line in text.splitlines())


def markdown_inline(text: str) -> str:
    r"""Write a text as one line of Markdown that shows it as it is.

    Example:
        >>> print(markdown_inline("*bold* <b> a|b one_shot"))
        \*bold\* \<b\> a\|b one_shot
    """
    line = " ".join(clean(text).split("\n"))
    line = re.sub(r"([\\`*\[\]<>&|~$])", r"\\\1", line)
    # Inside a word an underscore is no markup, and an escaped one hard to read in the file.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)


def markdown_line(text: str) -> str:
    r"""Write a text for the beginning of a line, where numbers, dashes and the like are lists and headings.

    Example:
        >>> print(markdown_line("1. *bold* <b> a|b one_shot"))
        1\. \*bold\* \<b\> a\|b one_shot
    """
    return re.sub(r"^(\d*)([#+\-=.)])", r"\1\\\2", markdown_inline(text))


def markdown_quote(text: str, empty: str) -> str:
    """Write a text as a block quote that shows it line by line; `empty` stands in for one that says nothing."""
    lines = [_indented(line) for line in clean(text.strip()).splitlines()] or [empty]
    # A backslash at the end keeps a line break; before an empty line, where a paragraph ends, it would be shown.
    ends = ["\\" if line and following else "" for line, following in zip(lines, [*lines[1:], ""], strict=True)]
    return "\n".join(f"> {line}{end}".rstrip() for line, end in zip(lines, ends, strict=True))


def _indented(line: str) -> str:
    # Four leading blanks would begin a code block, in which escapes are shown.
    line = line.expandtabs(4).rstrip()
    bare = line.lstrip()
    return "&nbsp;" * (len(line) - len(bare)) + markdown_line(bare)


def bold(text: str) -> Markdown:
    """Write a text in bold, shown as it is."""
    return Markdown(f"**{markdown_inline(text)}**")


def markdown_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str] | None = None
) -> Markdown:
    """Write a table in Markdown, whose cells are shown as they are unless they are `Markdown`.

    Words, under the heads `left` (the first when None), stand at the left of their columns, numbers at the right.
    """
    words = heads[:1] if left is None else left
    rule = [Markdown("---" if head in words else "---:") for head in heads]
    lines = [
        [cell if isinstance(cell, Markdown) else markdown_inline(cell) for cell in row] for row in (heads, rule, *rows)
    ]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


def figure_text(text: str) -> str:
    r"""Write a text as one line that matplotlib draws as it is, never as a formula.

    Example:
        >>> print(figure_text(r"m$\frac{1}$x"))
        m\$\frac{1}\$x
    """
    return " ".join(clean(text).split()).replace("$", r"\$")


def say(text: str, **options: Any) -> None:
    """Print a text that others may have written, with the options of `print`: nothing in it moves a cursor."""
    print(clean(text), **options)


def _harmless(character: str) -> str:
    moves = unicodedata.category(character) in ("Cc", "Cs") and character != "\t"
    return "\ufffd" if moves or unicodedata.bidirectional(character) in TURNS else character
