"""The summary of a run, as Markdown and on the screen: figures before and after, what went, how it was found.

Answers are what a model wrote, so they are shown as they are and can never become markup.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lit_prune.plan import PrunePlan, PruneStep

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

TIMES = ("s", "ms", "us", "ns", "min", "h")
FIGURES = ("", "before", "after", "change")
REMOVALS = ("epoch", "removed", "score", "parameters", "parameters left", "perplexity before", "perplexity after")
EMPTY = "(nothing)"


@dataclass(frozen=True)
class Row:
    """One figure before and after.

    Attributes:
        name: What was measured.
        before: Of the dense model, None where it was not measured.
        after: Of the pruned model, None where it was not measured.
        unit: Such as `ms`; times also get a ratio.
        better: Which direction is good, None where neither is.
    """

    name: str
    before: float | int | None
    after: float | int | None
    unit: str = ""
    better: Literal["lower", "higher"] | None = None


@dataclass(frozen=True)
class Answer:
    """What a model answered to one question, before and after."""

    question: str
    before: str
    after: str


def summary_markdown(
    rows: Sequence[Row], *, plan: PrunePlan, answers: Sequence[Answer] = (), notes: Sequence[str] = ()
) -> str:
    """Write the summary as one Markdown page.

    Args:
        rows: Figures before and after.
        plan: What was removed, and how that was found.
        answers: Shown as quotes, each line escaped.
        notes: Sentences at the end.
    """
    parts = [f"# {_escape(_title(plan))}", _markdown_table(FIGURES, [_figures(row) for row in rows])] if rows else [
        f"# {_escape(_title(plan))}"
    ]  # fmt: skip
    parts += ["## What was removed", _escape(_outcome(plan))]
    if plan.steps:
        parts.append(_markdown_table(*_removals(plan)))
    parts += ["## How it was found", "\n".join(f"- {_escape(fact)}" for fact in _facts(plan))]
    if answers:
        parts += ["## Answers", *(_markdown_answer(each) for each in answers)]
    if notes:
        parts += ["## Notes", "\n".join(f"- {_escape(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"


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
    yield _screen_text(console, _title(plan), "bold")
    if rows:
        styles = [_style(row) for row in rows]
        yield _screen_table(console, FIGURES, [_figures(row) for row in rows], styles)
    yield _screen_text(console, _outcome(plan), "bold")
    if plan.steps:
        yield _screen_table(console, *_removals(plan))
    for fact in _facts(plan):
        yield _screen_text(console, fact)
    for each in answers:
        yield _screen_text(console, f"\n{each.question}", "bold")
        yield _screen_answer(console, "before", each.before)
        yield _screen_answer(console, "after", each.after)
    for note in notes:
        yield _screen_text(console, note)


def _title(plan: PrunePlan) -> str:
    return f"{plan.model.name or plan.model.model_type}, before and after pruning"


def _figures(row: Row) -> list[str]:
    return [row.name, _number(row.before, row.unit), _number(row.after, row.unit), _change(row)]


def _number(value: float | int | None, unit: str = "") -> str:
    """Whole numbers in full, others with four digits.

    Example:
        >>> _number(134515008), _number(12.34567, "ms"), _number(98765.4), _number(None)
        ('134,515,008', '12.35 ms', '98,765', 'n/a')
    """
    if value is None:
        return "n/a"
    whole = isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1000)
    text = f"{value:,.0f}" if whole else f"{value:.4g}"
    return f"{text} {unit}" if unit else text


def _change(row: Row) -> str:
    """The change in percent, with a ratio for times and a word where one direction is good.

    Example:
        >>> _change(Row("prefill", 56.0, 50.0, unit="ms", better="lower"))
        '-10.7% (1.12x faster)'
    """
    if not row.before or row.after is None or not math.isfinite(row.before) or not math.isfinite(row.after):
        return ""
    percent = f"{(row.after - row.before) / abs(row.before):+.1%}"
    if row.unit in TIMES and row.before > 0 and row.after > 0 and row.before != row.after:
        ratio, word = (
            (row.before / row.after, "faster") if row.after < row.before else (row.after / row.before, "slower")
        )
        return f"{percent} ({ratio:.2f}x {word})"
    return f"{percent} ({verdict})" if (verdict := _verdict(row)) else percent


def _verdict(row: Row) -> str:
    if row.better is None or row.before is None or row.after is None or row.before == row.after:
        return ""
    return "better" if (row.after < row.before) == (row.better == "lower") else "worse"


def _outcome(plan: PrunePlan) -> str:
    if not plan.steps:
        return "Nothing was removed."
    gone, all_of_it = plan.num_removed_parameters, plan.model.num_parameters
    return f"{len(plan.steps)} removals, {gone:,} of {all_of_it:,} parameters ({gone / all_of_it:.1%})"


def _removals(plan: PrunePlan) -> tuple[tuple[str, ...], list[list[str]]]:
    left, cells = plan.model.num_parameters, []
    for step in plan.steps:
        left -= step.num_parameters
        cells.append(_removal(step, left / plan.model.num_parameters))
    if all(step.epoch is None for step in plan.steps):
        return REMOVALS[1:], [each[1:] for each in cells]
    return REMOVALS, cells


def _removal(step: PruneStep, left: float) -> list[str]:
    epoch = "" if step.epoch is None else str(step.epoch)
    losses = [_number(_perplexity(nll)) for nll in (step.nll_before, step.nll_after)]
    return [epoch, step.removed.name, _number(step.score), f"{step.num_parameters:,}", f"{left:.1%}", *losses]


def _perplexity(nll: float | None) -> float | None:
    if nll is None:
        return None
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def _facts(plan: PrunePlan) -> Iterator[str]:
    yield f"Search: {_described(plan.search)}; scorer: {_described(plan.scorer)}"
    yield f"Cost of the search: {plan.cost:,.1f} dense forward passes over the calibration tokens"
    if plan.calibration:
        yield f"Calibration: {_described(plan.calibration)}"
    if plan.versions:
        yield f"Made with: {', '.join(f'{name} {version}' for name, version in plan.versions.items())}"
    if any(step.nll_before is not None for step in plan.steps):
        yield "Perplexities of removals are on the calibration tokens, just before and after, ahead of any training"


def _described(settings: Mapping[str, Any]) -> str:
    """A setting's name or source, then the rest in brackets."""
    rest = {name.replace("_", " "): _setting(value) for name, value in settings.items()}
    head = rest.pop("name", None) or rest.pop("source", None)
    listed = ", ".join(f"{name}: {value}" for name, value in rest.items())
    return f"{head} ({listed})" if head and listed else head or listed or "n/a"


def _setting(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value)
    # A digest is to be recognised, not read.
    return f"{value[:12]}..." if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,}", value) else str(value)


def _markdown_table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    left = {"", "removed"}
    rule = ["---" if head in left else "---:" for head in heads]
    lines = [list(heads), rule, *([_escape(cell) for cell in row] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_answer(answer: Answer) -> str:
    return f"**{_escape(answer.question)}**\n\nBefore:\n\n{_quote(answer.before)}\n\nAfter:\n\n{_quote(answer.after)}"


def _quote(text: str) -> str:
    """A block quote that shows the text as it is, line by line."""
    lines = [_quoted(line) for line in _clean(text).splitlines()] or [EMPTY]
    # A backslash at the end keeps the line break, except at the end of a paragraph.
    ends = ["\\" if line and following else "" for line, following in zip(lines, [*lines[1:], ""], strict=True)]
    return "\n".join(f"> {line}{end}".rstrip() for line, end in zip(lines, ends, strict=True))


def _quoted(line: str) -> str:
    bare = line.strip()
    # Four leading blanks would be a code block, in which escapes show.
    return "&nbsp;" * (len(line.rstrip()) - len(line.strip()) if bare else 0) + _escape(bare)


def _escape(text: str) -> str:
    r"""One line of text that Markdown shows as it is.

    Example:
        >>> print(_escape("1. *bold* <b> a|b"))
        1\. \*bold\* \<b\> a\|b
    """
    line = re.sub(r"([\\`*_\[\]<>&|~$])", r"\\\1", " ".join(_clean(text).splitlines()))
    # These are markup only where a line begins.
    return re.sub(r"^(\d*)([#+\-=.):])", r"\1\\\2", line)


def _clean(text: str) -> str:
    """Without control characters, which could move a terminal's cursor, and halves of characters, which no file takes."""
    return "".join(
        "\ufffd" if unicodedata.category(each) in ("Cc", "Cs") and each not in "\n\r\t" else each for each in text
    )


def _style(row: Row) -> str:
    return {"better": "green", "worse": "red"}.get(_verdict(row), "")


def _screen_text(console: Console, text: str, style: str = "") -> RenderableType:
    from rich.text import Text

    # What the terminal cannot write must not end a run that took hours.
    return Text(_clean(text).encode(console.encoding, "replace").decode(console.encoding), style=style)


def _screen_table(
    console: Console, heads: Sequence[str], cells: Sequence[Sequence[str]], styles: Sequence[str] | None = None
) -> RenderableType:
    from rich.table import Table

    table = Table()
    for head in heads:
        table.add_column(head, justify="left" if head in ("", "removed") else "right")
    for row, style in zip(cells, styles or [""] * len(cells), strict=True):
        table.add_row(*(_screen_text(console, cell) for cell in row[:-1]), _screen_text(console, row[-1], style))
    return table


def _screen_answer(console: Console, when: str, text: str) -> RenderableType:
    from rich.panel import Panel

    return Panel(_screen_text(console, text.strip() or EMPTY), title=when, title_align="left")
