"""The page's line figures as inline SVG, in the colours of the text around them, and its map of scores as a PNG.

Text stays text, so that it can be searched and read aloud, and is never read as markup or as mathematics.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from lit_prune.evaluation import Result
from lit_prune.measure import perplexity_of
from lit_prune.plan import PrunePlan
from lit_prune.report.comparison import ACROSS, COLOURS, draw_quality, method_styles
from lit_prune.report.score_map import score_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#0b0c0d"
"""Stands for the colour of the text; the page's takes its place."""
SIZE = (5.2, 3.5)
"""Inches; a point is about a pixel where the page gives a figure all the width it wants."""
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
        # Both axes are drawn even where one curve is missing: a half-empty legend is no legend.
        if validation:
            axis.plot(*zip(*validation, strict=True), color=COLOURS[0], marker="o", markersize=4, label="perplexity")
            _name(axis, "optimizer step", "validation perplexity")
        if left:
            beside = axis.twinx() if validation else axis
            steps, shares = zip(*left, strict=True)
            percent = [100 * each for each in shares]
            style: Any = {"color": COLOURS[3], "linestyle": "--", "label": "parameters left"}
            beside.step([0, *steps], [100.0, *percent], where="post", **style)
            beside.set_ylabel("parameters left (%)")
            beside.set_xlabel("optimizer step")
            for line in (*axis.lines, *beside.lines):
                line.set_clip_on(False)
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
            axis.plot([x], [y], label=name, linestyle="none", markersize=8, **_style(number))
        axis.set_yscale("log")
        axis.invert_xaxis()
        _name(axis, across, up)
        _legend(axis)

    return _svg(draw, rows=math.ceil(len(finite) / 2))


def quality_figures(rows: Sequence[Result]) -> Iterator[Markup]:
    """Perplexity of one model's rows against size and against speed, for every text that it was measured on."""
    styles = method_styles(rows)
    for text in rows[0].perplexities:
        for across in ACROSS:

            def draw(axis: Axes, text: str = text, across: str = across) -> None:
                draw_quality(axis, rows, across, text, styles)
                _legend(axis)

            yield _svg(draw, rows=math.ceil(len(styles) / 2))


def score_picture(plan: PrunePlan) -> str | None:
    """The map of scores as a `data:` address of a PNG; None where the search has no scores of its rounds."""
    if not any(step.scores for step in plan.steps):
        return None
    figure = score_map(
        [step.scores for step in plan.steps],
        [step.removed.name for step in plan.steps],
        num_blocks=plan.model.num_blocks,
    )
    return png_address(figure)


def png_address(figure: Figure) -> str:
    """A figure as the `data:` address of a PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": "os^vD<>Ppd*X8"[number % 13]}


def _name(axis: Axes, across: str, up: str) -> None:
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.grid(visible=True, which="both", alpha=0.2)


def _legend(axis: Axes) -> None:
    axis.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _svg(draw: Callable[[Axes], None], rows: int = 1) -> Markup:
    """What `draw` draws, higher by the rows of its legend."""
    from matplotlib.figure import Figure

    with _style_of_the_page():
        figure = Figure(figsize=(SIZE[0], SIZE[1] + 0.19 * rows), layout="constrained")
        figure.patch.set_visible(False)
        axis = figure.subplots()
        axis.patch.set_visible(False)
        axis.spines[["top"]].set_visible(False)
        draw(axis)
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing)
    return Markup(_inline(text.getvalue()))


@contextmanager
def _style_of_the_page() -> Iterator[None]:
    import matplotlib as mpl

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings: Any = {"font.size": 10, "svg.fonttype": "none", "text.parse_math": False}
    with mpl.rc_context(settings | dict.fromkeys(ink, INK)):
        yield


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
