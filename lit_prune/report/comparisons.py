"""Comparisons: methods side by side as Markdown, CSV and pictures, and as a section of the page."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_prune.evaluation import DENSE, Result, averaged, rank_correlation, read_results
from lit_prune.files import figure_text, markdown_inline, markdown_line
from lit_prune.plan import Candidate
from lit_prune.report.columns import (
    PHASES,
    Column,
    by_amount,
    columns_of_draws,
    comparison_columns,
    comparison_tables,
    knee_in_words,
    knee_of,
)
from lit_prune.report.drawing import growing_legend, map_piece, mark, name_axes, new_figure, number_axis, svg
from lit_prune.report.evaluations import require_rows, settings_line
from lit_prune.report.pieces import Piece, number
from lit_prune.report.removal_map import removal_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS_FILE = "results.jsonl"
ENDS = [f"{phase}, {end}" for phase in PHASES for end in ("low", "high")]
NUM_COMMON = 8
SIZE, SPEED = ACROSS = ("parameters left (%)", "prefill, times as fast")
CEILING = 16
"""Times the lowest perplexity, above which methods that destroyed a model would press all others together."""


def comparison_markdown(rows: Sequence[Result], notes: Sequence[str] = (), settings: Mapping[str, Any] = {}) -> str:
    """Write how it was measured, one table for each model and amount, and notes; draws of one method are one line.

    In bold is the best pruned value of each column, and what differs from it by no more than chance would.
    """
    columns = [*comparison_columns(rows), *columns_of_draws(rows)]
    models = [line for own in _by_model(rows) for line in _model_markdown(own, columns)]
    return "\n\n".join([markdown_line(_measured(settings, rows)), *models, *map(markdown_line, notes)]) + "\n"


def _measured(settings: Mapping[str, Any], rows: Sequence[Result]) -> str:
    dtypes = ", ".join(dict.fromkeys(row.dtype for row in rows if row.dtype)) or settings.get("dtype")
    return settings_line({**settings, "dtype": dtypes, "draws": 1 + max(row.draw for row in rows)})


def comparison_csv(rows: Sequence[Result]) -> str:
    """Write all rows as CSV, one line each, unrounded."""
    text = io.StringIO()
    columns = comparison_columns(rows)
    writer = csv.writer(text, lineterminator="\n")
    heads = ["model", "method", "amount", "draw", *(column.head for column in columns), *ENDS, "removed sublayers"]
    writer.writerow(heads)
    for row in rows:
        values: list[float | str] = [column.value(row) for column in columns]
        values += [end for phase in PHASES for end in row.speed_intervals.get(phase, ("", ""))]
        writer.writerow([row.model, row.label, row.amount, row.draw, *values, " ".join(row.removed)])
    return text.getvalue()


def comparison_figure(rows: Sequence[Result]) -> Figure:
    """Draw perplexity against the parameters left, and against speed: two panels a model, a line a method."""
    models = _by_model(averaged(rows))
    figure = new_figure(12.0, 4.6 * len(models))
    panels = figure.subplots(len(models), 2, squeeze=False)
    for axes, own in zip(panels, models, strict=True):
        for axis, across in zip(axes, ACROSS, strict=True):
            _draw_quality(axis, own, across, next(iter(rows[0].perplexities)), _styles(rows))
            number_axis(axis)
            axis.set_title(figure_text(own[0].model))
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False)
    return figure


def comparison_pieces(folder: Path) -> Iterator[Piece]:
    """What `lit-prune compare` left: models one below the other, each with figures, tables and maps of what went.

    A file that is damaged or holds no row is a DataError.
    """
    settings, results = read_results(folder / RESULTS_FILE)
    require_rows(results, folder / RESULTS_FILE)
    yield Piece("note", _measured(settings, results))
    for rows in _by_model(results):
        yield Piece("foreign_heading", rows[0].model)
        amounts, means = by_amount(rows), averaged(rows)
        columns = [*comparison_columns(rows), *columns_of_draws(rows)]
        yield Piece("figures", list(_quality_drawings(means)) if amounts else [])
        yield from (Piece("note", note) for note in _notes(rows))
        for title, table, _ in comparison_tables(rows, columns):
            yield Piece("subheading", f"{title[0].upper()}{title[1:]}")
            yield Piece("table", table)
        for amount, pruned in amounts.items():
            if any(row.removed for row in pruned):
                yield Piece("subheading", title := f"What went at {amount:.0%}")
                alt = f"{title}: blocks from left to right, a line a method, attention above mlp"
                yield map_piece(partial(removal_figure, pruned), alt)


def _by_model(rows: Sequence[Result]) -> list[list[Result]]:
    return [[row for row in rows if row.model == name] for name in dict.fromkeys(row.model for row in rows)]


def _quality_drawings(rows: Sequence[Result]) -> Iterator[str]:
    """One model's perplexity on every text against size and against speed."""

    def draw(text: str, across: str, axis: Axes) -> None:
        _draw_quality(axis, rows, across, text, _styles(rows))
        if ceiling := _ceiling(rows, text):
            axis.set_ylim(0.9 * ceiling / CEILING, ceiling)
        number_axis(axis)
        growing_legend(axis)

    for text in rows[0].perplexities:
        for across in ACROSS:
            yield svg(partial(draw, text, across), f"{rows[0].model}: perplexity on {text}, against {across}")


def _ceiling(rows: Sequence[Result], text: str) -> float | None:
    """Where the pictures of a text end, None where they show every perplexity."""
    found = [row.perplexities[text] for row in rows if text in row.perplexities]
    return CEILING * min(found) if max(found) > CEILING * min(found) else None


def _styles(rows: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """The colour and marker of every method but the dense model."""
    return {label: mark(index) for index, label in enumerate(dict.fromkeys(row.label for row in rows if row.amount))}


def _draw_quality(axis: Axes, rows: Sequence[Result], across: str, text: str, styles: Mapping[str, Any]) -> None:
    """Draw a line a method, from the dense model on."""
    for label, style in styles.items():
        line = [row for row in rows if row.label == DENSE] + [row for row in rows if row.label == label]
        places = [100 * (1 - row.share_removed) if across == SIZE else row.prefill for row in line]
        axis.plot(places, [row.perplexities[text] for row in line], label=figure_text(label), alpha=0.85, **style)
    if (bend := knee_of(rows)) is not None:
        place = 100 * (1 - bend.share_removed) if across == SIZE else bend.prefill
        axis.axvline(place, color="gray", linestyle=":", label=figure_text(f"knee, {bend.share_removed:.0%} less"))
    if across == SIZE:
        axis.invert_xaxis()
    name_axes(axis, across, figure_text(f"perplexity on {text}"), alpha=0.25)


def _notes(rows: Sequence[Result]) -> Iterator[str]:
    for text in rows[0].perplexities:
        if ceiling := _ceiling(rows, text):
            yield f"The pictures of {text} end at a perplexity of {number(ceiling)}; the tables have all."
    if rows[0].tasks and len(rows) > 1:
        yield _correlation(rows, "rows")
    if said := knee_in_words(rows):
        yield said


def _correlation(rows: Sequence[Result], of_what: str, over: str = "") -> str:
    text = next(iter(rows[0].perplexities))
    correlation, num_rows = rank_correlation(rows, text)
    between = f"perplexity on {text} with mean accuracy, {over}{num_rows} {of_what}"
    return f"Rank correlation (Spearman) of {between}: {correlation:.2f}."


def _model_markdown(rows: Sequence[Result], columns: Sequence[Column]) -> Iterator[str]:
    model = rows[0].model
    for title, table, pruned in comparison_tables(rows, columns):
        yield f"## {markdown_inline(model)}, {title}"
        yield table.markdown
        yield from _agreement(pruned)
    if said := knee_in_words(rows):
        yield said
    if rows[0].tasks:
        yield markdown_line(_correlation(rows, f"rows of {model}", "over all "))


def _agreement(rows: Sequence[Result]) -> Iterator[str]:
    """What methods remove most often, and which blocks none of them touches."""
    removed = [{sublayer for name in row.removed for sublayer in Candidate.parse(name).sublayers} for row in rows]
    counts = Counter(sublayer for sublayers in removed for sublayer in sublayers)
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0].block, pair[0].kind))
    most = [f"{sublayer} ({number})" for sublayer, number in ordered[:NUM_COMMON] if number > 1]
    if most:
        touched = {sublayer.block for sublayer in counts}
        spared = [str(block) for block in range(rows[0].num_blocks) if block not in touched]
        yield (
            f"Removed most often, in so many of these {len(rows)} lines: {', '.join(most)}. "
            f"Blocks that none of them touches: {', '.join(spared) or 'none'}."
        )
