"""Cells, tables and cards: what the templates lay out. All text is plain, and escaped when it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: Plain.
        strong: Whether it stands out.
    """

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under heads.

    Attributes:
        heads: Of the columns.
        rows: Cells, as many as heads.
        num_words: Columns at the left that hold words, not numbers.
        note: Below it.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_words: int = 1
    note: str = ""


@dataclass(frozen=True)
class Card:
    """One figure of the summary.

    Attributes:
        title: What it is.
        value: Large.
        note: Small, below.
    """

    title: str
    value: str
    note: str = ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str | Cell]], *, num_words: int = 1, note: str = "") -> Table:
    """A table of cells or plain texts; columns that are empty in every row are left out.

    Example:
        >>> table(["a", "b", "c"], [["1", "", "3"], ["4", "", ""]]).heads
        ('a', 'c')
    """
    cells = [[Cell(each) if isinstance(each, str) else each for each in row] for row in rows]
    kept = [column for column in range(len(heads)) if any(row[column].text for row in cells)]
    return Table(
        tuple(heads[column] for column in kept),
        tuple(tuple(row[column] for column in kept) for row in cells),
        sum(column < num_words for column in kept),
        note,
    )


def short(number: float) -> str:
    r"""A count with three digits or four, which no line break takes apart.

    Example:
        >>> short(134515008), short(7.1e9), short(83520)
        ('134.5\xa0M', '7.10\xa0B', '83,520')
    """
    for limit, unit, digits in ((1e9, "B", 2), (1e6, "M", 1)):
        if number >= limit:
            return f"{number / limit:.{digits}f}\N{NO-BREAK SPACE}{unit}"
    return f"{number:,.0f}"
