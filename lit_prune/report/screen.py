"""The summary on the screen, in tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lit_prune.plan import PrunePlan
from lit_prune.report.summary import (
    EMPTY,
    FIGURES,
    LEFT_ALIGNED,
    Answer,
    Row,
    clean,
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
    yield _text(console, title(plan), "bold")
    if rows:
        styles = [STYLES.get(verdict(row), "") for row in rows]
        yield _table(console, FIGURES, [figures(row) for row in rows], styles)
    yield _text(console, outcome(plan), "bold")
    if plan.steps:
        yield _table(console, *removals(plan))
    for fact in facts(plan):
        yield _text(console, fact)
    for each in answers:
        yield _text(console, f"\n{each.question}", "bold")
        yield _answer(console, "before", each.before)
        yield _answer(console, "after", each.after)
    for note in notes:
        yield _text(console, note)


def _text(console: Console, text: str, style: str = "") -> RenderableType:
    from rich.text import Text

    # What the terminal cannot write must not end a run that took hours.
    return Text(clean(text).encode(console.encoding, "replace").decode(console.encoding), style=style)


def _table(
    console: Console, heads: Sequence[str], cells: Sequence[Sequence[str]], styles: Sequence[str] | None = None
) -> RenderableType:
    from rich.table import Table

    table = Table()
    for head in heads:
        table.add_column(head, justify="left" if head in LEFT_ALIGNED else "right")
    for row, style in zip(cells, styles or [""] * len(cells), strict=True):
        table.add_row(*(_text(console, cell) for cell in row[:-1]), _text(console, row[-1], style))
    return table


def _answer(console: Console, when: str, text: str) -> RenderableType:
    from rich.panel import Panel

    return Panel(_text(console, text.strip() or EMPTY), title=when, title_align="left")
