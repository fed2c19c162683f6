"""The tables of a comparison: its columns, what stands out in them, and the sizes of one model as a curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from statistics import fmean
from typing import NamedTuple

from lit_prune.evaluation import (
    FEWEST_POINTS,
    Result,
    apart_by_perplexity,
    apart_by_speed,
    apart_by_task,
    averaged,
    knee,
    perplexity_interval,
)
from lit_prune.report.pieces import Cell, Table

PHASES = ("prefill", "decode")


class Column(NamedTuple):
    """A column of the table: how a row's value is written, and which of the values is the best, if any.

    `apart` says which rows differ by more than chance, `interval` from what to what the value may be, `text` the text
    that it is the perplexity on.
    """

    head: str
    value: Callable[[Result], float]
    form: str
    better: Callable[[Sequence[float]], float] | None = None
    apart: Callable[[Result, Result], bool] = lambda one, other: True
    interval: Callable[[Result], tuple[float, float] | None] = lambda row: None
    text: str | None = None


def comparison_tables(
    rows: Sequence[Result], columns: Sequence[Column]
) -> Iterator[tuple[str, Table, Sequence[Result]]]:
    """The tables of one model: one for every amount, with its rows, or one in all where one method has several.

    Yields:
        A title, the table, and the rows of the methods that it sets side by side.
    """
    means = averaged(rows)
    if is_curve(rows):
        yield "what each size costs", _curve(means, columns), ()
        return
    for amount, pruned in by_amount(means).items():
        shown = [*(row for row in means if not row.amount), *pruned]
        cells: list[list[str | Cell]] = [
            [row.label, *(_cell(row, pruned, column) for column in columns)] for row in shown
        ]
        heads = ["method", *(column.head for column in columns)]
        yield f"{amount:.0%} of the parameters to remove", Table.of(heads, cells), by_amount(rows)[amount]


def by_amount(rows: Sequence[Result]) -> dict[float, list[Result]]:
    """The pruned rows."""
    amounts = sorted({row.amount for row in rows if row.amount})
    return {amount: [row for row in rows if row.amount == amount] for amount in amounts}


def is_curve(rows: Sequence[Result]) -> bool:
    """Whether the rows are sizes that one method made of one model."""
    pruned = [row for row in rows if row.amount]
    return len({(row.model, row.label) for row in pruned}) == 1 and len({row.amount for row in pruned}) > 1


def knee_of(rows: Sequence[Result]) -> Result | None:
    """The last size of a curve that costs less than those behind it, by the geometric mean of all texts' perplexities.

    None where the rows are no curve, or where it does not bend.
    """
    means = sorted(averaged(rows), key=lambda row: row.share_removed)
    if not is_curve(rows) or not all(math.isfinite(ppl) for row in means for ppl in row.perplexities.values()):
        return None
    logs = [fmean(math.log(ppl) for ppl in row.perplexities.values()) for row in means]
    found = knee([row.share_removed for row in means], logs)
    return None if found is None else means[found]


def knee_in_words(rows: Sequence[Result]) -> str | None:
    """Where the knee of a curve is; None of what is no curve, or has too few sizes."""
    found = knee_of(rows)
    if found is None:
        straight = "There is no knee: what goes later costs no more, by log-perplexity, than what went before."
        return straight if is_curve(rows) and len(by_amount(rows)) + 1 >= FEWEST_POINTS else None
    return f"The knee is at {found.share_removed:.1%}: what goes beyond it costs more than what went before."


def _curve(rows: Sequence[Result], columns: Sequence[Column]) -> Table:
    """One method's sizes in one table; perplexities with intervals that hold against the dense model."""
    dense = next((row for row in rows if not row.amount), None)

    def cells(row: Result) -> Iterator[Cell]:
        yield Cell(f"{row.amount:.0%}" if row.amount else row.label)
        for column in columns:
            yield _cell(row, (), column)
            if column.text is not None:
                yield Cell(_against(row, dense, column.text))

    heads = [head for column in columns for head in (column.head, *(["95 % interval"] * (column.text is not None)))]
    return Table.of(["to remove", *heads], [list(cells(row)) for row in rows]).filled


def _against(row: Result, dense: Result | None, text: str) -> str:
    ends = None if dense is None or row is dense else perplexity_interval(dense, row, text)
    return "" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"


def _cell(row: Result, pruned: Sequence[Result], column: Column) -> Cell:
    value = column.value(row)
    text = f"{value:{column.form}}" if math.isfinite(value) else ""
    if text and (interval := column.interval(row)) is not None and interval[0] < interval[1]:
        text += f" ({interval[0]:{column.form}} to {interval[1]:{column.form}})"
    if column.better is None or row not in pruned or not text:
        return Cell(text)
    first = column.better([column.value(other) for other in pruned])
    best = next((other for other in pruned if column.value(other) == first), row)
    return Cell(text, strong=value == first or not column.apart(row, best))


def comparison_columns(rows: Sequence[Result]) -> list[Column]:
    """The columns that rows of one comparison have values for."""
    first = rows[0]
    found = [Column("parameters", lambda row: row.num_parameters, ",d")]
    found += [Column("removed", lambda row: row.share_removed, ".1%")]
    if any(row.zeros for row in rows):
        found += [Column("zeros", lambda row: row.zeros or math.nan, ".1%")]
    if any(row.cache < 1 for row in rows):
        found += [Column("KV cache left", lambda row: row.cache, ".1%")]
    if any(row.searched for row in rows) and is_curve(rows):
        found += [Column("ppl, searched text", lambda row: row.searched or math.nan, ".2f")]
    found += [_perplexity(text, rows) for text in first.perplexities]
    found += [_task(name, f"{name} {score.metric}") for name, score in first.tasks.items()]
    if first.tasks:
        found += [Column("mean of tasks", lambda row: row.mean_accuracy, ".3f", max)]
    found += [_speed(phase) for phase in PHASES]
    found += [Column("search, passes", lambda row: row.passes if row.amount else math.nan, ",.1f", min)]
    return found


def columns_of_draws(rows: Sequence[Result]) -> list[Column]:
    """Where methods have several draws, the geometric mean over texts, of all draws and of the worst."""
    if not any(row.draw for row in rows):
        return []

    def of_texts(row: Result) -> float:
        return math.exp(math.fsum(map(math.log, row.perplexities.values())) / len(row.perplexities))

    def of_worst(row: Result) -> float:
        kind = (row.model, row.label, row.amount)
        return max(of_texts(draw) for draw in rows if (draw.model, draw.label, draw.amount) == kind)

    return [Column("ppl, all texts", of_texts, ".2f", min), Column("worst draw", of_worst, ".2f", min)]


def _perplexity(text: str, rows: Sequence[Result]) -> Column:
    apart = partial(apart_by_perplexity, rows, text)
    return Column(f"ppl {text}", lambda row: row.perplexities.get(text, math.nan), ".2f", min, apart, text=text)


def _speed(phase: str) -> Column:
    apart = partial(apart_by_speed, phase)
    return Column(phase, attrgetter(phase), ".2f", max, apart, lambda row: row.speed_intervals.get(phase))


def _task(name: str, head: str) -> Column:
    apart = partial(apart_by_task, name)
    return Column(head, lambda row: row.tasks[name].value if name in row.tasks else math.nan, ".3f", max, apart)
