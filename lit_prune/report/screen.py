"""Tables and texts on the terminal, which shows other people's text as it is and writes what it can."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lit_prune.files import clean
from lit_prune.report.pieces import EMPTY, Table

if TYPE_CHECKING:
    from rich.text import Text

STYLES = {"": "", "better": "green", "worse": "red"}
FILE_WIDTH = 120
"""Columns where no terminal says how many."""


class Screen:
    """The standard output, on which rich lays out tables and frames.

    Args:
        wide: Whether a file gets lines of `FILE_WIDTH` columns, where no terminal and no COLUMNS say how many it has.
    """

    def __init__(self, *, wide: bool = False) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        if wide and not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console.width = FILE_WIDTH

    def say(self, words: str, style: str = "") -> None:
        """Show a text in a style of rich, such as `bold`."""
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
