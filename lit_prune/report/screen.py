"""The summary on the screen, in tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from lit_prune.files import clean
from lit_prune.plan import PrunePlan
from lit_prune.report.summary import (
    EMPTY,
    FIGURES,
    LEFT_ALIGNED,
    Answer,
    Row,
    facts,
    figures,
    outcome,
    removals,
    title,
    verdict,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STYLES = {"better": "green", "worse": "red"}


def print_summary(
    rows: Sequence[Row], *, plan: PrunePlan, answers: Sequence[Answer] = (), notes: Sequence[str] = ()
) -> None:
    """Show on the screen what `summary_markdown` writes.

    Args:
        rows: Figures before and after.
        plan: What was removed, and how that was found.
        answers: Shown as they are.
        notes: Sentences at the end.
    """
    from rich.console import Console

    console = Console(highlight=False)
    for part in _on_screen(console, rows, plan, answers, notes):
        console.print(part)


def _on_screen(
    console: Console, rows: Sequence[Row], plan: PrunePlan, answers: Sequence[Answer], notes: Sequence[str]
) -> Iterator[RenderableType]:
    yield text(console, title(plan), "bold")
    if rows:
        styles = [STYLES.get(verdict(row), "") for row in rows]
        yield table(console, FIGURES, [figures(row) for row in rows], styles)
    yield text(console, outcome(plan), "bold")
    if plan.steps:
        yield table(console, *removals(plan))
    for fact in facts(plan):
        yield text(console, fact)
    for each in answers:
        yield text(console, f"\n{each.question}", "bold")
        yield _answer(console, "before", each.before)
        yield _answer(console, "after", each.after)
    for note in notes:
        yield text(console, note)


def text(console: Console, words: str, style: str = "") -> RenderableType:
    """Text that the terminal can write."""
    from rich.text import Text

    # What the terminal cannot write must not end a run that took hours.
    return Text(clean(words).encode(console.encoding, "replace").decode(console.encoding), style=style)


def table(
    console: Console,
    heads: Sequence[str],
    cells: Sequence[Sequence[str]],
    styles: Sequence[str] | None = None,
    left: Collection[str] = LEFT_ALIGNED,
) -> RenderableType:
    """Rows of cells under heads; `styles` are those of each row's last cell, `left` the heads of words."""
    from rich.table import Table

    rows = Table()
    for head in heads:
        # On a narrow screen a number goes on in the next line; cut off it would be another number.
        rows.add_column(head, justify="left" if head in left else "right", overflow="fold")
    for row, style in zip(cells, styles or [""] * len(cells), strict=True):
        rows.add_row(*(text(console, cell) for cell in row[:-1]), text(console, row[-1], style))
    return rows


def _answer(console: Console, when: str, answer: str) -> RenderableType:
    from rich.panel import Panel

    return Panel(text(console, answer.strip() or EMPTY), title=when, title_align="left")
