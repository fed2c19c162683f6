"""The page's line figures as inline SVG, in the colours of the text around them, and its map of scores as a PNG.

Text stays text, so that it can be searched and read aloud, and is never read as markup or as mathematics.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from lit_prune.evaluation import Result
from lit_prune.files import clean
from lit_prune.measure import perplexity_of
from lit_prune.plan import PrunePlan
from lit_prune.report.comparison import ACROSS, COLOURS, MARKERS, draw_quality, method_styles, removal_figure
from lit_prune.report.score_map import score_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#0b0c0d"
"""Stands for the colour of the text; the page's takes its place."""
CEILING = 16
"""Times the lowest perplexity, above which methods that destroyed a model would press all others together."""
SIZE = (5.2, 3.5)
"""Inches; a point is about a pixel where the page gives a figure all the width it wants."""
MAX_LETTERS = 56
Curve = Sequence[tuple[int, float]]


def search_figure(plan: PrunePlan) -> Markup | None:
    """Perplexity on the calibration tokens against the parameters left, removal by removal; None where unmeasured."""
    left, gone = [100.0], 0
    for step in plan.steps:
        gone += step.num_parameters
        left.append(100 * (1 - gone / plan.model.num_parameters))
    first = plan.steps[0].nll_before if plan.steps else None
    points = [(100.0, first), *((x, step.nll_after) for x, step in zip(left[1:], plan.steps, strict=True))]
    known = [(x, perplexity_of(nll)) for x, nll in points if nll is not None and math.isfinite(perplexity_of(nll))]
    if len(known) < 2:
        return None

    def draw(axis: Axes) -> None:
        axis.plot(*zip(*known, strict=True), color=COLOURS[0], marker="o", markersize=4)
        axis.invert_xaxis()
        _name(axis, "parameters left (%)", "perplexity, calibration tokens")

    return _svg(draw)


def training_figure(curves: Mapping[str, Curve]) -> Markup | None:
    """Perplexity on validation text and parameters left over the steps of a training; None where neither was logged."""
    validation, left = curves.get("val_ppl", ()), curves.get("prune/parameters_left", ())
    if not validation and not left:
        return None

    def draw(axis: Axes) -> None:
        if validation:
            axis.plot(*zip(*validation, strict=True), color=COLOURS[0], marker="o", markersize=4, label="perplexity")
            _name(axis, "optimizer step", "validation perplexity")
        if left:
            beside = axis.twinx() if validation else axis
            steps, shares = zip(*left, strict=True)
            percent = [100 * each for each in shares]
            style: Any = {"color": COLOURS[3], "linestyle": "--", "label": "parameters left"}
            beside.step([0, *steps], [100.0, *percent], where="post", **style)
            beside.spines["right"].set_visible(True)
            beside.set_ylabel("parameters left (%)")
            beside.set_xlabel("optimizer step")
        axis.figure.legend(loc="outside lower center", ncols=2, frameon=False)

    return _svg(draw)


def points_figure(points: Mapping[str, tuple[float, float]], across: str, up: str) -> Markup | None:
    """Named points, the horizontal axis falling to the right; None with fewer than two.

    Args:
        points: Where each is.
        across: What the horizontal axis is.
        up: What the vertical axis is, logarithmic.
    """
    finite = {name: each for name, each in points.items() if all(map(math.isfinite, each))}
    if len(finite) < 2:
        return None

    def draw(axis: Axes) -> None:
        for number, (name, (x, y)) in enumerate(finite.items()):
            style: Any = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            axis.plot([x], [y], label=name, linestyle="none", markersize=8, **style)
        axis.set_yscale("log")
        axis.invert_xaxis()
        _name(axis, across, up)
        _number(axis)
        _legend(axis)

    return _svg(draw)


def quality_figures(rows: Sequence[Result]) -> Iterator[Markup]:
    """Perplexity of one model's rows against size and against speed, for every text that it was measured on."""
    styles = method_styles(rows)
    for text in rows[0].perplexities:
        for across in ACROSS:

            def draw(axis: Axes, text: str = text, across: str = across) -> None:
                draw_quality(axis, rows, across, text, styles)
                if ceiling := ceiling_of(rows, text):
                    axis.set_ylim(0.9 * ceiling / CEILING, ceiling)
                _number(axis)
                _legend(axis)

            yield _svg(draw)


def ceiling_of(rows: Sequence[Result], text: str) -> float | None:
    """Where the pictures of a text end, None where they show every perplexity."""
    found = [row.perplexities[text] for row in rows if text in row.perplexities]
    return CEILING * min(found) if max(found) > CEILING * min(found) else None


def score_picture(plan: PrunePlan) -> str | None:
    """The map of scores as a `data:` address of a PNG; None where the search has no scores of its rounds."""
    if not any(step.scores for step in plan.steps):
        return None
    scores, removed = [step.scores for step in plan.steps], [step.removed.name for step in plan.steps]
    return _png(lambda: score_map(scores, removed, num_blocks=plan.model.num_blocks))


def removal_picture(rows: Sequence[Result]) -> str:
    """The map of what each method took out, as a `data:` address of a PNG.

    Args:
        rows: Of one model and amount.
    """
    return _png(lambda: _shortened(removal_figure(rows)))


def _png(make: Callable[[], Figure]) -> str:
    data = io.BytesIO()
    with _style({}):
        make().savefig(data, format="png", dpi=110)
    return png_address(data.getvalue())


def png_address(data: bytes) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _name(axis: Axes, across: str, up: str) -> None:
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.grid(visible=True, which="both", alpha=0.2)


def _number(axis: Axes) -> None:
    """Ticks of a logarithmic axis as plain numbers, at least some of them wherever it ends."""
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_ylim()
    subs = (1, 2, 5) if high < 1000 * low else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs) if high > 5 * low else AutoLocator())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _legend(axis: Axes) -> None:
    """Below the picture, which grows by its rows."""
    labels = axis.get_legend_handles_labels()[1]
    columns = 2 if all(len(each) <= MAX_LETTERS / 2 for each in labels) else 1
    figure: Any = axis.figure
    figure.set_figheight(SIZE[1] + 0.19 * math.ceil(len(labels) / columns))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _svg(draw: Callable[[Axes], None]) -> Markup:
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    with _style(dict.fromkeys(ink, INK)):
        figure = Figure(figsize=SIZE, layout="constrained")
        figure.patch.set_visible(False)
        axis = figure.subplots()
        axis.patch.set_visible(False)
        axis.spines[["top", "right"]].set_visible(False)
        draw(axis)
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        _shortened(figure).savefig(text, format="svg", metadata=nothing)
    return Markup(_inline(text.getvalue()))


@contextmanager
def _style(settings: Mapping[str, Any]) -> Iterator[None]:
    """Texts as they are, without complaints of letters that matplotlib's own font lacks: the page's has them."""
    import matplotlib as mpl

    plain: Any = {"font.size": 10, "svg.fonttype": "none", "text.parse_math": False}
    with mpl.rc_context(plain | settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def _shortened(figure: Figure) -> Figure:
    """The figure, with as much of every text as it has room for and a page can hold."""
    from matplotlib.text import Text

    for each in figure.findobj(Text):
        text = " ".join(clean(each.get_text()).replace(r"\$", "$").split())
        each.set_text(text if len(text) <= MAX_LETTERS else f"{text[:16]}…{text[17 - MAX_LETTERS :]}")
    return figure


def _inline(svg: str) -> str:
    """The element alone, as wide as its place, with names that no other figure of the page has."""
    element = svg[svg.index("<svg") :]
    # Comments repeat the text of labels; the style sheet would be the page's.
    element = re.sub(r"<!--.*?-->|<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2).replace(INK, "currentColor")
    element = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", element)
    own = hashlib.sha256(element.encode()).hexdigest()[:8]
    element = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{own}-", element)
    return element.replace("<svg ", '<svg role="img" ', 1).strip()
