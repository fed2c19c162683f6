"""Models side by side as a Markdown table: perplexity and tasks, with differences from the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lit_prune.evaluation import Measured, exceeds_error
from lit_prune.files import bold, markdown_table


def evaluation_markdown(rows: Sequence[Measured], *, compared: bool) -> str:
    """Write a table, one model a row.

    Args:
        rows: What was measured, of the same texts and tasks.
        compared: Whether the others are held against the first: bold where the difference exceeds its error.
    """
    texts, tasks = list(rows[0].perplexities), list(rows[0].tasks)
    heads = ["model", "parameters", *(f"ppl {text}" for text in texts)]
    heads += [f"{task} ({rows[0].tasks[task].metric})" for task in tasks]
    lines = [list(_cells(row, rows[0] if compared and row is not rows[0] else None)) for row in rows]
    return f"{markdown_table(heads, lines)}\n"


def _cells(row: Measured, other: Measured | None) -> Iterator[str]:
    yield row.model
    yield f"{row.num_parameters:,}"
    for text, each in row.perplexities.items():
        shown = f"{each.ppl:.2f}"
        if other is None:
            yield shown
            continue
        before = other.perplexities[text]
        change = math.expm1(min(each.nll - before.nll, 700))
        yield _bold(f"{shown} ({change:+.1%})", exceeds_error(each.nll - before.nll, each.error, before.error))
    for task, score in row.tasks.items():
        shown = f"{score.value:.1%} ± {score.error:.1%}"
        if other is None:
            yield shown
            continue
        change = score.value - other.tasks[task].value
        yield _bold(f"{shown} ({100 * change:+.1f})", exceeds_error(change, score.error, other.tasks[task].error))


def _bold(text: str, yes: bool) -> str:
    return bold(text) if yes else text
