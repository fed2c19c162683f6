"""Pictures of an analysis: one for each topic, a panel for each model, all panels of a topic on the same scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_prune.evaluation import BIASES, EMBEDDING, Analysis
from lit_prune.files import figure_text
from lit_prune.plan.prune_plan import KINDS, SublayerId

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = {"attention": "#0072b2", "mlp": "#d55e00", "stream": "#000000", "other": "#8a8a8a", "kl": "#009e73"}
MARKERS = {"attention": "o", "mlp": "s"}
REMOVED = "#e4e4e4"
NUM_COLUMNS = 3
HIGHEST = 1e12
"""Where infinite impact is drawn, at most."""
MOST_SIMILAR = 1e-5
"""1 - cosine at which the axis of similarities ends."""
THROUGH = "blocks gone through"
PICTURES = {
    "norms": "Size of the residual stream and of what is added to it",
    "similarity": "Similarity of the residual stream before and behind a sublayer",
    "impact": "Impact of a sublayer: relative rise of perplexity without it",
    "logit_lens": "Logit lens: final norm and head on the stream behind each block",
    "unraveled": "Unraveled view: what each path carries of the predicted token's logit",
}
"""Titles by the names of files, in the order in which they are read."""


@dataclass(frozen=True)
class _Row:
    """One line of panels.

    Attributes:
        label: Of the vertical axis.
        draw: Draws one model.
        finish: Sets up the axis, once for all that share it.
        across: Of the horizontal axis.
    """

    label: str
    draw: Callable[[Axes, Analysis], None]
    finish: Callable[[Axes], None] = lambda axis: None
    across: str = "block (attention on its number, mlp half a block behind)"


def analysis_figures(analyses: Sequence[Analysis]) -> dict[str, Figure]:
    """Draw all topics that were measured, by the name of their file.

    Args:
        analyses: One or more, with names of their own.

    Returns:
        `norms`, `similarity`, `impact` (where any model has it), `logit_lens` and `unraveled` (the same).
    """
    rows = {
        "norms": [_Row("mean L2 norm", _norms, _log)],
        "similarity": [_Row("cosine", _similarity, _cosine_axis)],
        "logit_lens": [
            _Row("nats", _lens_losses, _log, THROUGH),
            _Row("same top token", _lens_agreement, _share_axis, THROUGH),
        ],
    }
    if any(each.ri is not None for one in analyses for each in one.sublayers):
        rows["impact"] = [_Row("RI", _impact("ri"), _symlog(0.01)), _Row("NRI", _impact("nri"), _symlog(1.0))]
    if any(each.paths for each in analyses):
        rows["unraveled"] = [_Row("above the mean logit", _bars("margin")), _Row("share of all terms", _bars("share"))]
    return {name: _figure(PICTURES[name], each, analyses) for name, each in rows.items()}


def _figure(title: str, rows: Sequence[_Row], analyses: Sequence[Analysis]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = min(len(analyses), NUM_COLUMNS)
    num_lines = math.ceil(len(analyses) / num_columns)
    num_blocks = max(each.num_blocks for each in analyses)
    width = min(max(0.17 * num_blocks + 1.5, 4.0), 9.0) * num_columns
    figure = Figure(figsize=(max(width, 6.0), 2.5 * len(rows) * num_lines + 1.0), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    grid = figure.add_gridspec(len(rows) * num_lines, num_columns)
    for number, row in enumerate(rows):
        first: Any = None
        for index, analysis in enumerate(analyses):
            line = len(rows) * (index // num_columns) + number
            axis = figure.add_subplot(grid[line, index % num_columns], sharex=first, sharey=first)
            first = first or axis
            row.draw(axis, analysis)
            _shade_removed(axis, analysis, ahead=0.25 if row.across == THROUGH else 0.0)
            axis.grid(visible=True, alpha=0.25)
            axis.tick_params(labelsize=9)
            if number == 0:
                axis.set_title(figure_text(analysis.model), fontsize=10)
            if index % num_columns == 0:
                axis.set_ylabel(row.label, fontsize=10)
            if number + 1 == len(rows):
                axis.set_xlabel(row.across, fontsize=10)
        row.finish(first)
        first.set_xlim(-1.6, num_blocks + 0.9)
    _add_legend(figure)
    return figure


def _place(name: str) -> float:
    """Where a sublayer stands on the axis of blocks: attention on its number, mlp half a block behind."""
    if name in (EMBEDDING, BIASES):
        return math.nan
    kind, _, block = name.partition(".")
    return int(block) + 0.5 * (kind == "mlp")


def _norms(axis: Axes, analysis: Analysis) -> None:
    places = [_place(each.name) for each in analysis.sublayers]
    norms = [each.input_norm for each in analysis.sublayers]
    axis.plot(
        [*places, analysis.num_blocks],
        [*norms, analysis.depths[-1].norm],
        color=COLOURS["stream"],
        label="residual stream, read by a sublayer",
    )
    _by_kind(axis, analysis, {each.name: each.output_norm for each in analysis.sublayers}, " output")


def _similarity(axis: Axes, analysis: Analysis) -> None:
    # A cosine near 1 says little on a linear axis: the distance from 1 is drawn, the axis shows the cosine.
    _by_kind(axis, analysis, {each.name: max(1 - each.similarity, MOST_SIMILAR) for each in analysis.sublayers})


def _impact(figure: str) -> Callable[[Axes, Analysis], None]:
    def draw(axis: Axes, analysis: Analysis) -> None:
        values = {each.name: getattr(each, figure) for each in analysis.sublayers}
        _by_kind(axis, analysis, {name: min(each, HIGHEST) for name, each in values.items() if each is not None})
        axis.axhline(0, color=COLOURS["other"], linewidth=0.8)

    return draw


def _lens_losses(axis: Axes, analysis: Analysis) -> None:
    places = _depth_places(analysis)
    style: dict[str, Any] = {"marker": "o", "markersize": 3.5}
    losses = [each.loss for each in analysis.depths]
    axis.plot(places, losses, color=COLOURS["stream"], label="loss of the target token", **style)
    # The last is 0, which has no place on a logarithmic axis.
    divergences = [each.kl if each.kl > 0 else math.nan for each in analysis.depths]
    axis.plot(places, divergences, color=COLOURS["kl"], linestyle="--", label="KL from the whole model", **style)


def _lens_agreement(axis: Axes, analysis: Analysis) -> None:
    shares = [each.agreement for each in analysis.depths]
    axis.plot(
        _depth_places(analysis),
        shares,
        color=COLOURS["attention"],
        marker="o",
        markersize=3.5,
    )


def _depth_places(analysis: Analysis) -> list[float]:
    """Where depths stand: the embedding at 0, behind block 0 at 1."""
    return [0 if each.name == EMBEDDING else int(each.name.partition(".")[2]) + 1 for each in analysis.depths]


def _bars(figure: str) -> Callable[[Axes, Analysis], None]:
    def draw(axis: Axes, analysis: Analysis) -> None:
        heights = {each.name: getattr(each, figure) for each in analysis.paths}
        for kind in KINDS:
            own = {name: each for name, each in heights.items() if name.startswith(kind)}
            axis.bar([_place(each) for each in own], list(own.values()), width=0.45, color=COLOURS[kind], label=kind)
        others = [heights.get(each, math.nan) for each in (EMBEDDING, BIASES)]
        axis.bar(
            [-1, analysis.num_blocks + 0.3],
            others,
            width=0.45,
            color="white",
            edgecolor="black",
            hatch="////",
            label="embedding (left), biases (right)",
        )
        axis.axhline(0, color=COLOURS["other"], linewidth=0.8)

    return draw


def _by_kind(axis: Axes, analysis: Analysis, values: Mapping[str, float], suffix: str = "") -> None:
    for kind in KINDS:
        names = [f"{kind}.{block}" for block in range(analysis.num_blocks)]
        axis.plot(
            [_place(each) for each in names],
            [values.get(each, math.nan) for each in names],
            color=COLOURS[kind],
            marker=MARKERS[kind],
            markersize=4,
            linewidth=1,
            label=f"{kind}{suffix}",
        )


def _shade_removed(axis: Axes, analysis: Analysis, ahead: float) -> None:
    left = {each.name for each in analysis.sublayers}
    for block in range(analysis.num_blocks):
        for kind in KINDS:
            if (name := str(SublayerId(block, kind))) not in left:
                at = _place(name) + ahead
                axis.axvspan(at - 0.25, at + 0.25, color=REMOVED, linewidth=0, label="removed", zorder=0)


def _log(axis: Axes) -> None:
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    axis.set_yscale("log")
    # Less than two powers of ten would leave the axis with one number.
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter("")


def _share_axis(axis: Axes) -> None:
    axis.set_ylim(-0.03, 1.03)


def _symlog(linear: float) -> Callable[[Axes], None]:
    def finish(axis: Axes) -> None:
        axis.set_yscale("symlog", linthresh=linear)
        # The limits so far have the margins of a linear axis.
        axis.relim()
        axis.autoscale(axis="y")

    return finish


def _cosine_axis(axis: Axes) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    cosines = [each for each in (-1, 0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
               if low <= 1 - each <= high]  # fmt: skip
    axis.yaxis.set_major_locator(FixedLocator([1 - each for each in cosines]))
    axis.yaxis.set_major_formatter(FixedFormatter([f"{each:g}" for each in cosines]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.invert_yaxis()


def _add_legend(figure: Figure) -> None:
    num_columns = 4 if figure.get_figwidth() > 10 else 3
    named: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(
        list(named.values()),
        list(named),
        loc="outside lower center",
        ncols=min(len(named), num_columns),
        frameon=False,
        fontsize=9,
    )
