"""Analyses: Markdown, JSON, and a picture for each topic, whose panels, one a model, have the same scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_prune.errors import DataError
from lit_prune.evaluation import BIASES, EMBEDDING, Analysis, DepthFigures, SublayerFigures
from lit_prune.files import figure_text, markdown_inline, markdown_line, read_json, write_json, write_text
from lit_prune.plan import KINDS
from lit_prune.report.drawing import (
    BLUE,
    GREEN,
    INK,
    PAPER,
    RED,
    SHADE,
    every,
    map_piece,
    new_figure,
    number_axis,
    save_figure,
    shortened,
)
from lit_prune.report.evaluations import require_rows, settings_line
from lit_prune.report.pieces import Piece, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ANALYSIS_FILE = "analysis.json"
SUBLAYERS = ("sublayer", "input norm", "output norm", "cosine", "RI", "NRI", "logit above the mean", "share")
DEPTHS = ("stream behind", "norm", "loss", "same top token", "KL")
COLOURS = {"attention": BLUE, "mlp": RED, "stream": INK, "other": "#8a8a8a", "kl": GREEN}
MARKERS = {"attention": "o", "mlp": "s"}
NUM_COLUMNS = 3
HIGHEST = 1e12
"""Where infinite impact is drawn, at most."""
MOST_SIMILAR = 1e-5
"""1 - cosine at which the axis of similarities ends."""
COSINES = (-1, 0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
THROUGH = "blocks gone through"
TITLES = {
    "norms": "Size of the residual stream and of what is added to it",
    "similarity": "Similarity of the residual stream before and behind a sublayer",
    "impact": "Impact of a sublayer: relative rise of perplexity without it",
    "logit_lens": "Logit lens: final norm and head on the stream behind each block",
    "unraveled": "Unraveled view: what each path carries of the predicted token's logit",
}
"""By the names of the pictures' files, in the order in which they are read."""


class Panels(NamedTuple):
    """One line of panels: the label of the vertical axis, what draws one model, and what sets up the shared axis."""

    label: str
    draw: Callable[[Axes, Analysis], None]
    finish: Callable[[Axes], object] = lambda axis: None
    across: str = "block; mlp half a block behind"


def write_analysis(
    folder: str | Path,
    analyses: Sequence[Analysis],
    settings: Mapping[str, Any],
    *,
    shown: Sequence[Analysis] | None = None,
) -> list[Path]:
    """Write `analysis.json`, `analysis.md` and the pictures into a folder, and return the files.

    Args:
        folder: The folder; it is made where it is not there, and what stood there of these files is replaced.
        analyses: One analysis or more.
        settings: How they were measured, for readers.
        shown: The analyses in the pictures, side by side; all when None.
    """
    folder = Path(folder)
    shown = analyses if shown is None else shown
    data = {"settings": dict(settings), "shown": [analyses.index(each) for each in shown]}
    data["models"] = [asdict(analysis) for analysis in analyses]
    page = analysis_markdown(analyses)
    written = [write_json(folder / ANALYSIS_FILE, data), write_text(folder / "analysis.md", page)]
    return written + [save_figure(each, folder / f"{name}.png") for name, each in analysis_figures(shown).items()]


def analysis_pieces(folder: Path) -> list[Piece]:
    """The pictures of what `write_analysis` left. A file that is damaged or empty is a DataError."""
    path = folder / ANALYSIS_FILE
    try:
        data = read_json(path.read_text(encoding="utf-8"))
        models = [Analysis.from_dict(model) for model in data["models"]]
        shown = [models[index] for index in data.get("shown", range(len(models)))]
        note = Piece("note", f"{', '.join(model.model for model in models)}. {settings_line(dict(data['settings']))}")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"cannot read the analysis {path}: {error!r}; make it again") from error
    require_rows(models, path)
    topics, pieces = _topics(shown), [note]
    for name, title in TITLES.items():
        if name in topics:
            draw = partial(_figure, "", topics[name], shown)
            pieces += [Piece("heading", title), map_piece(draw, f"{title}, block by block")]
    return pieces


def analysis_markdown(analyses: Sequence[Analysis]) -> str:
    """Write tables of sublayers and depths of one analysis or more, those of each model below its name."""
    return "\n".join(line for analysis in analyses for line in _lines(analysis))


def _lines(analysis: Analysis) -> Iterator[str]:
    yield f"## {markdown_inline(analysis.model)}\n"
    yield (
        f"{analysis.num_parameters:,} parameters; {len(analysis.sublayers)} of {2 * analysis.num_blocks} sublayers; "
        f"loss {analysis.loss:.4f} nats over {analysis.num_predicted:,} predicted tokens.\n"
    )
    yield from (f"{markdown_line(note)}\n" for note in analysis.notes)
    yield f"{Table.of(SUBLAYERS, _sublayer_rows(analysis)).markdown}\n"
    depths = [
        [depth.name, f"{depth.norm:.4g}", f"{depth.loss:.4f}", f"{depth.agreement:.1%}", f"{depth.kl:.4f}"]
        for depth in analysis.depths
    ]
    yield f"{Table.of(DEPTHS, depths).markdown}\n"


def _sublayer_rows(analysis: Analysis) -> Iterator[list[str]]:
    """A row for each sublayer, then those paths that are of none."""
    paths = {path.name: [f"{path.margin:+.3f}", f"{path.share:.2%}"] for path in analysis.paths}
    for sublayer in analysis.sublayers:
        norms = [f"{sublayer.input_norm:.4g}", f"{sublayer.output_norm:.4g}", f"{sublayer.similarity:.4f}"]
        impact = [_number(sublayer.ri), _number(sublayer.nri)]
        yield [sublayer.name, *norms, *impact, *(paths[sublayer.name] if paths else ["", ""])]
    yield from ([name, *[""] * 5, *cells] for name, cells in paths.items() if "." not in name)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if math.isfinite(value) else "infinite"


def analysis_figures(analyses: Sequence[Analysis]) -> dict[str, Figure]:
    """Draw the topics that were measured of one analysis or more, by the names of their files.

    These are `norms`, `similarity`, `logit_lens`, and where any model has it `impact` and `unraveled`.
    """
    return {name: _figure(TITLES[name], panels, analyses) for name, panels in _topics(analyses).items()}


def _topics(analyses: Sequence[Analysis]) -> dict[str, list[Panels]]:
    # A cosine near 1 says little on a linear axis: the distance from 1 is drawn, the axis shows the cosine.
    similarity = partial(_draw_by_kind, figure=lambda sublayer: max(1 - sublayer.similarity, MOST_SIMILAR))
    agreement = partial(_draw_by_depth, figure=lambda depth: depth.agreement, color=COLOURS["attention"])
    lines = {
        "norms": [Panels("mean L2 norm", _norms, number_axis)],
        "similarity": [Panels("cosine", similarity, _cosine_axis)],
        "logit_lens": [
            Panels("nats", _lens_losses, number_axis, THROUGH),
            Panels("same top token", agreement, lambda axis: axis.set_ylim(-0.03, 1.03), THROUGH),
        ],
    }
    if any(sublayer.ri is not None for analysis in analyses for sublayer in analysis.sublayers):
        lines["impact"] = [
            Panels(name.upper(), partial(_impact, name), partial(_symlog, linear))
            for name, linear in {"ri": 0.01, "nri": 1.0}.items()
        ]
    if any(analysis.paths for analysis in analyses):
        labels = {"margin": "above the mean logit", "share": "share of all terms"}
        lines["unraveled"] = [Panels(label, partial(_bars, name)) for name, label in labels.items()]
    return lines


def _figure(title: str, lines: Sequence[Panels], analyses: Sequence[Analysis]) -> Figure:
    num_columns = min(len(analyses), NUM_COLUMNS)
    num_lines = math.ceil(len(analyses) / num_columns)
    num_blocks = max(analysis.num_blocks for analysis in analyses)
    width = min(max(0.17 * num_blocks + 1.5, 4.0), 9.0) * num_columns
    figure = new_figure(max(width, 6.0), 2.5 * len(lines) * num_lines + 1.0)
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(len(lines) * num_lines, num_columns)
    for number, panels in enumerate(lines):
        first: Axes | None = None
        for index, analysis in enumerate(analyses):
            place = grid[len(lines) * (index // num_columns) + number, index % num_columns]
            axis = figure.add_subplot(place, sharex=first, sharey=first)
            first = first or axis
            panels.draw(axis, analysis)
            _shade_removed(axis, analysis, ahead=0.25 if panels.across == THROUGH else 0.0)
            axis.grid(visible=True, alpha=0.25)
            axis.set_axisbelow(True)
            axis.tick_params(labelsize=9)
            axis.set_title("" if number else figure_text(shortened(analysis.model, 44)), fontsize=10)
            if number + 1 == len(lines):
                axis.set_xlabel(panels.across)
            if index % num_columns == 0:
                axis.set_ylabel(panels.label)
        assert first is not None
        panels.finish(first)
        first.set(xlim=(-1.6, num_blocks + 0.9), xticks=range(0, num_blocks + 1, every(num_blocks, 14)))
    _add_legend(figure)
    return figure


def _add_legend(figure: Figure) -> None:
    named: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    num_columns = min(len(named), 4 if figure.get_figwidth() > 10 else 3)
    figure.legend(named.values(), named, loc="outside lower left", ncols=num_columns, frameon=False, fontsize=9)


def _place(name: str) -> float:
    """Where a sublayer stands on the axis of blocks: attention on its number, mlp half a block behind."""
    kind, _, block = name.partition(".")
    return int(block) + 0.5 * (kind == "mlp")


def _norms(axis: Axes, analysis: Analysis) -> None:
    places = [*(_place(sublayer.name) for sublayer in analysis.sublayers), analysis.num_blocks]
    norms = [*(sublayer.input_norm for sublayer in analysis.sublayers), analysis.depths[-1].norm]
    axis.plot(places, norms, color=COLOURS["stream"], label="residual stream, read by a sublayer")
    _draw_by_kind(axis, analysis, lambda sublayer: sublayer.output_norm, " output")


def _impact(figure: str, axis: Axes, analysis: Analysis) -> None:
    of = attrgetter(figure)
    _draw_by_kind(axis, analysis, lambda sublayer: math.nan if of(sublayer) is None else min(of(sublayer), HIGHEST))
    axis.axhline(0, color=COLOURS["other"], linewidth=0.8)


def _lens_losses(axis: Axes, analysis: Analysis) -> None:
    _draw_by_depth(axis, analysis, lambda depth: depth.loss, color=COLOURS["stream"], label="loss of the target token")
    # The last is 0, which has no place on a logarithmic axis.
    style = {"color": COLOURS["kl"], "linestyle": "--", "label": "KL from the whole model"}
    _draw_by_depth(axis, analysis, lambda depth: depth.kl if depth.kl > 0 else math.nan, **style)


def _draw_by_depth(axis: Axes, analysis: Analysis, figure: Callable[[DepthFigures], float], **style: Any) -> None:
    """A line over the depths: the embedding at 0, behind block 0 at 1."""
    places = [0 if depth.name == EMBEDDING else _place(depth.name) + 1 for depth in analysis.depths]
    axis.plot(places, [figure(depth) for depth in analysis.depths], marker="o", markersize=3.5, **style)


def _bars(figure: str, axis: Axes, analysis: Analysis) -> None:
    heights = {path.name: attrgetter(figure)(path) for path in analysis.paths}
    for kind in KINDS:
        own = {_place(name): height for name, height in heights.items() if name.startswith(kind)}
        axis.bar(list(own), list(own.values()), width=0.45, color=COLOURS[kind], label=kind)
    others = [heights.get(name, math.nan) for name in (EMBEDDING, BIASES)]
    places, label = [-1, analysis.num_blocks + 0.3], "embedding (left), biases (right)"
    axis.bar(places, others, width=0.45, color=PAPER, edgecolor=INK, hatch="////", label=label)
    axis.axhline(0, color=COLOURS["other"], linewidth=0.8)


def _draw_by_kind(axis: Axes, analysis: Analysis, figure: Callable[[SublayerFigures], float], suffix: str = "") -> None:
    """A line of attention and one of mlp over the blocks, interrupted where there is no value."""
    values = {sublayer.name: figure(sublayer) for sublayer in analysis.sublayers}
    for kind in KINDS:
        names = [f"{kind}.{block}" for block in range(analysis.num_blocks)]
        places, found = [_place(name) for name in names], [values.get(name, math.nan) for name in names]
        axis.plot(
            places, found, color=COLOURS[kind], marker=MARKERS[kind], markersize=4, linewidth=1, label=f"{kind}{suffix}"
        )


def _shade_removed(axis: Axes, analysis: Analysis, ahead: float) -> None:
    present = {sublayer.name for sublayer in analysis.sublayers}
    for name in (f"{kind}.{block}" for block in range(analysis.num_blocks) for kind in KINDS):
        if name not in present:
            middle = _place(name) + ahead
            axis.axvspan(middle - 0.25, middle + 0.25, color=SHADE, linewidth=0, label="removed", zorder=0)


def _symlog(linear: float, axis: Axes) -> None:
    from matplotlib.ticker import SymmetricalLogLocator

    axis.set_yscale("symlog", linthresh=linear)
    # The limits so far have the margins of a linear axis.
    axis.relim()
    axis.autoscale(axis="y")
    # Less than two powers of ten on either side would leave the axis with few numbers.
    subs = (1, 2, 5) if max(map(abs, axis.get_ylim())) < 100 * linear else (1,)
    axis.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=subs))
    axis.yaxis.set_major_formatter("{x:,.7g}")
    axis.minorticks_off()


def _cosine_axis(axis: Axes) -> None:
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    cosines = [cosine for cosine in COSINES if low <= 1 - cosine <= high]
    axis.set_yticks([1 - cosine for cosine in cosines], [f"{cosine:g}" for cosine in cosines])
    axis.minorticks_off()
    axis.invert_yaxis()
