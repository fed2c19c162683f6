"""What views are made of: tables, numbers in words, pieces of the page, and the screen. All text in them is plain."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from lit_prune.files import Markdown, bold, clean, markdown_table

if TYPE_CHECKING:
    from rich.text import Text

EMPTY = "(nothing)"
STYLES = {"": "", "better": "green", "worse": "red"}
FILE_WIDTH = 120
"""Columns of a file, where no terminal says how many."""


@dataclass(frozen=True)
class Cell:
    """Text in a table, which may stand out (`strong`), and which a screen colours by its `verdict`."""

    text: str
    strong: bool = False
    verdict: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under heads, with a note below; columns under the heads `words` hold words, all others numbers."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: tuple[str, ...]
    note: str = ""

    @classmethod
    def of(
        cls,
        heads: Sequence[str],
        rows: Iterable[Iterable[str | Cell]],
        words: Sequence[str] | None = None,
        note: str = "",
    ) -> Table:
        """Make a table of cells and plain texts; the first column alone holds words where `words` is None."""
        cells = tuple(tuple(Cell(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
        return cls(tuple(heads), cells, tuple(heads[:1] if words is None else words), note)

    @property
    def filled(self) -> Table:
        """The table without the columns that are empty in every row.

        Example:
            >>> Table.of(["a", "b", "c"], [["1", "", "3"], ["4", "", ""]]).filled.heads
            ('a', 'c')
        """
        kept = [column for column in range(len(self.heads)) if any(row[column].text for row in self.rows)]
        rows = tuple(tuple(row[column] for column in kept) for row in self.rows)
        return replace(self, heads=tuple(self.heads[column] for column in kept), rows=rows)

    @property
    def markdown(self) -> Markdown:
        """The table in Markdown, without its note."""
        cells = [[bold(cell.text) if cell.strong else cell.text for cell in row] for row in self.rows]
        return markdown_table(self.heads, cells, self.words)


class Piece(NamedTuple):
    """A piece of the page: the macro of `pieces.html.jinja` that lays it out, and what that is given."""

    layout: str
    content: object


def titled(heading: str, pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Pieces below a heading; without pieces there is no heading either."""
    found = list(pieces)
    if found:
        yield Piece("heading", heading)
        yield from found


def number(value: float | int | None, unit: str = "") -> str:
    """Whole numbers in full, others with four digits.

    Example:
        >>> number(134515008), number(12.34567, "ms"), number(98765.4), number(None)
        ('134,515,008', '12.35 ms', '98,765', 'n/a')
    """
    if value is None:
        return "n/a"
    whole = isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1000)
    text = f"{value:,.0f}" if whole else f"{value:.4g}"
    return f"{text} {unit}" if unit else text


def count(amount: float) -> str:
    r"""A count with three digits or four, which no line break takes apart.

    Example:
        >>> count(134515008), count(7.1e9), count(83520)
        ('134.5\xa0M', '7.10\xa0B', '83,520')
    """
    for limit, unit, digits in ((1e9, "B", 2), (1e6, "M", 1)):
        if amount >= limit:
            return f"{amount / limit:.{digits}f}\N{NO-BREAK SPACE}{unit}"
    return f"{amount:,.0f}"


def ppl(value: float) -> str:
    """A perplexity with two decimals, where they say something."""
    return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


class Screen:
    """The standard output, on which rich lays out tables and frames; a `wide` file gets lines of `FILE_WIDTH`."""

    def __init__(self, *, wide: bool = False) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        if wide and not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console.width = FILE_WIDTH

    def say(self, words: str, style: str = "") -> None:
        """Show a text in a style of rich."""
        self._console.print(self._text(words, style))

    def show(self, table: Table) -> None:
        """Show a table, without its note."""
        from rich.table import Table as Grid

        grid = Grid()
        for head in table.heads:
            # On a narrow screen a number goes on in the next line; cut off it would be another number.
            grid.add_column(head, justify="left" if head in table.words else "right", overflow="fold")
        for row in table.rows:
            grid.add_row(*(self._text(cell.text, STYLES[cell.verdict]) for cell in row))
        self._console.print(grid)

    def quote(self, title: str, words: str) -> None:
        """Show a text in a frame."""
        from rich.panel import Panel

        self._console.print(Panel(self._text(words.strip() or EMPTY, ""), title=title, title_align="left"))

    def _text(self, words: str, style: str) -> Text:
        from rich.text import Text

        # What the terminal cannot write must not end a run that took hours.
        encoding = self._console.encoding
        return Text(clean(words).encode(encoding, "replace").decode(encoding), style=style)
