"""A comparison of methods as Markdown, CSV and pictures."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_prune.evaluation import DENSE, Result
from lit_prune.files import bold, figure_text, markdown_inline, markdown_line, markdown_table
from lit_prune.plan.prune_plan import Candidate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_COMMON = 8
MARKERS = "os^vD<>Ppd*X8"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#7f7f7f")
"""Okabe and Ito's, which people who are colour-blind tell apart, without black and yellow; as many as are no factor of
the number of markers, so that 91 methods have a mark of their own."""
PANEL = (6.0, 4.6)
"""Inches."""
ACROSS = ("parameters left (%)", "prefill, times as fast")


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        head: What stands above it.
        value: Of a row.
        form: How it is written.
        better: Which value is the best: `min`, `max`, or none where there is no better and worse.
    """

    head: str
    value: Callable[[Result], float]
    form: str
    better: Callable[[Sequence[float]], float] | None = None


def comparison_markdown(rows: Sequence[Result], notes: Sequence[str] = ()) -> str:
    """One table for each model and amount, the best pruned value of each column in bold, baselines first.

    Args:
        rows: Of all models and amounts.
        notes: Sentences at the end.
    """
    return "\n\n".join([*_tables(rows), *map(markdown_line, notes)]) + "\n"


def comparison_csv(rows: Sequence[Result]) -> str:
    """All rows as CSV, one line each, unrounded."""
    text = io.StringIO()
    columns = comparison_columns(rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "method", "amount", *(each.head for each in columns), "removed"])
    for row in rows:
        values = [each.value(row) for each in columns]
        writer.writerow([row.model, row.label, row.amount, *values, " ".join(row.removed)])
    return text.getvalue()


def comparison_figure(rows: Sequence[Result]) -> Figure:
    """Perplexity against what is left of the parameters, and against speed: two panels a model, a line a method."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row.model for row in rows))
    text = next(iter(rows[0].perplexities))
    figure = Figure(figsize=(2 * PANEL[0], PANEL[1] * len(models)), layout="constrained")
    axes = figure.subplots(len(models), 2, squeeze=False)
    styles = method_styles(rows)
    for line, model in zip(axes, models, strict=True):
        own = [row for row in rows if row.model == model]
        for axis, across in zip(line, ACROSS, strict=True):
            draw_quality(axis, own, across, text, styles)
            axis.set_title(figure_text(model))
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False)
    return figure


def removal_figure(rows: Sequence[Result]) -> Figure:
    """Which sublayers each method took out of one model at one amount: a line a method, attention above mlp.

    Args:
        rows: Of one model and amount.
    """
    import numpy as np
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    num_blocks = rows[0].num_blocks
    grid = np.zeros((2 * len(rows), num_blocks))
    for number, row in enumerate(rows):
        for each in (one for name in row.removed for one in Candidate.parse(name).sublayers):
            grid[2 * number + (each.kind == "mlp"), each.block] = 1 + (each.kind == "mlp")
    names = max(2.0, 0.09 * max(len(row.label) for row in rows))
    figure = Figure(figsize=(0.3 * num_blocks + 1 + names, 0.36 * len(rows) + 1.4), layout="constrained")
    axis = figure.subplots()
    axis.pcolormesh(grid, cmap=ListedColormap(["#eeeeee", "#0072b2", "#d55e00"]), vmin=0, vmax=2)
    for number in range(len(rows) + 1):
        axis.axhline(2 * number, color="white", linewidth=3)
    for number in range(num_blocks + 1):
        axis.axvline(number, color="white", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_yticks([2 * number + 1 for number in range(len(rows))], [figure_text(row.label) for row in rows])
    axis.set_xticks(
        [number + 0.5 for number in range(0, num_blocks, 5)], [str(each) for each in range(0, num_blocks, 5)]
    )
    axis.set_xlabel("block; blue: attention removed, orange: mlp removed")
    axis.tick_params(length=0)
    axis.set_frame_on(False)
    return figure


def rank_correlation(rows: Sequence[Result], text: str) -> tuple[float, int]:
    """How well perplexity foretells accuracy: Spearman's correlation of the two over all rows with tasks.

    Args:
        rows: Of one model, the dense one among them or not.
        text: Whose perplexity.

    Returns:
        The correlation of perplexity and mean accuracy, -1 where lower perplexity always means higher accuracy, and
        the number of rows.
    """
    import torch
    from torchmetrics.functional import spearman_corrcoef

    pairs = [(row.perplexities[text], _mean_accuracy(row)) for row in rows if row.tasks]
    if len(pairs) < 2:
        return math.nan, len(pairs)
    ppl, accuracy = torch.tensor(pairs, dtype=torch.float64).T
    return float(spearman_corrcoef(ppl, accuracy)), len(pairs)


def method_styles(rows: Sequence[Result]) -> dict[str, dict[str, str]]:
    """A colour and a marker for every method but the dense model."""
    labels = dict.fromkeys(row.label for row in rows if row.amount)
    return {
        label: {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        for number, label in enumerate(labels)
    }


def draw_quality(axis: Axes, rows: Sequence[Result], across: str, text: str, styles: Mapping[str, Any]) -> None:
    """Draw a line a method, from the dense model on.

    Args:
        axis: Where.
        rows: Of one model.
        across: One of `ACROSS`.
        text: Whose perplexity.
        styles: Of each method.
    """
    dense = [row for row in rows if row.label == DENSE]

    def position(row: Result) -> float:
        return 100 * (1 - row.share_removed) if across == ACROSS[0] else row.prefill

    for label, style in styles.items():
        line = [*dense, *(row for row in rows if row.label == label)]
        axis.plot(
            [position(row) for row in line],
            [row.perplexities[text] for row in line],
            label=figure_text(label),
            alpha=0.85,
            **style,
        )
    axis.set_yscale("log")
    axis.set_xlabel(across)
    axis.set_ylabel(figure_text(f"perplexity on {text}"))
    if across == ACROSS[0]:
        axis.invert_xaxis()
    axis.grid(visible=True, which="both", alpha=0.25)


def _tables(rows: Sequence[Result]) -> Iterator[str]:
    columns = comparison_columns(rows)
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        baselines = [row for row in own if not row.amount]
        for amount in sorted({row.amount for row in own if row.amount}):
            yield f"## {markdown_inline(model)}, {amount:.0%} of the parameters to remove"
            pruned = [row for row in own if row.amount == amount]
            yield _table(baselines, pruned, columns)
            yield from _agreement(pruned)
        if own[0].tasks:
            text = next(iter(own[0].perplexities))
            correlation, number = rank_correlation(own, text)
            yield markdown_line(
                f"Rank correlation (Spearman) of perplexity on {text} with mean accuracy, over all {number} rows of "
                f"{model}: {correlation:.2f}."
            )


def _agreement(rows: Sequence[Result]) -> Iterator[str]:
    """What methods remove most often, and which blocks none of them touches."""
    removed = [{each for name in row.removed for each in Candidate.parse(name).sublayers} for row in rows]
    counts = Counter(each for one in removed for each in one)
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0].block, pair[0].kind))
    most = [f"{each} ({number})" for each, number in ordered[:NUM_COMMON] if number > 1]
    if not most:
        return
    whole = {each.block for each in counts}
    spared = [str(block) for block in range(rows[0].num_blocks) if block not in whole]
    yield (
        f"Removed most often, in so many of these {len(rows)} lines: {', '.join(most)}. "
        f"Blocks that none of them touches: {', '.join(spared) or 'none'}."
    )


def _table(baselines: Sequence[Result], pruned: Sequence[Result], columns: Sequence[Column]) -> str:
    return markdown_table(
        ["method", *(each.head for each in columns)],
        [
            [row.label, *(bold(cell) if best else cell for cell, best in cells_of(row, pruned, columns))]
            for row in [*baselines, *pruned]
        ],
    )


def cells_of(row: Result, pruned: Sequence[Result], columns: Sequence[Column]) -> Iterator[tuple[str, bool]]:
    """The cells of a row, and whether each is the best of the pruned rows beside it."""
    for column in columns:
        value = column.value(row)
        cell = f"{value:{column.form}}" if math.isfinite(value) else ""
        is_best = column.better and row in pruned and value == column.better([column.value(each) for each in pruned])
        yield cell, bool(is_best and cell)


def comparison_columns(rows: Sequence[Result]) -> list[Column]:
    """The columns that rows of one comparison have values for."""
    first = rows[0]
    found = [Column("parameters", lambda row: row.num_parameters, ",d")]
    found += [Column("removed", lambda row: row.share_removed, ".1%")]
    if any(row.zeros for row in rows):
        found += [Column("zeros", lambda row: row.zeros or math.nan, ".1%")]
    found += [_perplexity(text) for text in first.perplexities]
    found += [_task(name, f"{name} {score.metric}") for name, score in first.tasks.items()]
    if first.tasks:
        found += [Column("mean of tasks", _mean_accuracy, ".3f", max)]
    found += [Column("prefill", lambda row: row.prefill, ".2f", max)]
    found += [Column("decode", lambda row: row.decode, ".2f", max)]
    found += [Column("search, passes", lambda row: row.passes if row.amount else math.nan, ",.1f", min)]
    return found


def _perplexity(text: str) -> Column:
    return Column(f"ppl {text}", lambda row: row.perplexities.get(text, math.nan), ".2f", min)


def _task(name: str, head: str) -> Column:
    return Column(head, lambda row: row.tasks[name].value if name in row.tasks else math.nan, ".3f", max)


def _mean_accuracy(row: Result) -> float:
    return math.fsum(each.value for each in row.tasks.values()) / len(row.tasks) if row.tasks else math.nan
