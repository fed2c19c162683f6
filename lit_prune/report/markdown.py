"""The summary as one Markdown page.

Answers are what a model wrote: they are escaped line by line, so that they can never become markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lit_prune.files import clean, markdown_inline, markdown_line, markdown_table
from lit_prune.plan import PrunePlan
from lit_prune.report.summary import EMPTY, FIGURES, LEFT_ALIGNED, Answer, Row, facts, figures, outcome, removals, title


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
    return "\n\n".join(_sections(rows, plan, answers, notes)) + "\n"


def plan_markdown(plan: PrunePlan) -> str:
    """The removals of a plan as a table."""
    return _table(*removals(plan))


def answer_markdown(answer: Answer) -> str:
    """One question and what was answered before and after, as quotes that nothing in them can end."""
    quotes = f"Before:\n\n{quoted(answer.before)}\n\nAfter:\n\n{quoted(answer.after)}"
    return f"**{markdown_inline(answer.question)}**\n\n{quotes}"


def _sections(rows: Sequence[Row], plan: PrunePlan, answers: Sequence[Answer], notes: Sequence[str]) -> Iterator[str]:
    yield f"# {markdown_inline(title(plan))}"
    if rows:
        yield _table(FIGURES, [figures(row) for row in rows])
    yield f"## What was removed\n\n{markdown_inline(outcome(plan))}"
    if plan.steps:
        yield _table(*removals(plan))
    yield f"## How it was found\n\n{_list(list(facts(plan)))}"
    if answers:
        yield "## Answers"
    yield from (answer_markdown(each) for each in answers)
    if notes:
        yield f"## Notes\n\n{_list(notes)}"


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    return markdown_table(heads, cells, LEFT_ALIGNED)


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_line(each)}" for each in sentences)


def quoted(text: str) -> str:
    """A block quote that shows a text as it is, line by line."""
    lines = [_indented(line) for line in clean(text.strip()).splitlines()] or [EMPTY]
    # A backslash at the end keeps a line break; before an empty line, where a paragraph ends, it would be shown.
    ends = ["\\" if line and following else "" for line, following in zip(lines, [*lines[1:], ""], strict=True)]
    return "\n".join(f"> {line}{end}".rstrip() for line, end in zip(lines, ends, strict=True))


def _indented(line: str) -> str:
    # Four leading blanks would begin a code block, in which escapes are shown.
    line = line.expandtabs(4).rstrip()
    bare = line.lstrip()
    return "&nbsp;" * (len(line) - len(bare)) + markdown_line(bare)
