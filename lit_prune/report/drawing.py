"""How pictures are drawn: figures as files, and as inline SVG whose text can be searched.

Figures are made without pyplot, which would keep each of them for ever and may look for a display.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lit_prune.files import clean, file_aside
from lit_prune.report.pieces import Piece

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREEN, RED = "#0072b2", "#009e73", "#d55e00"
COLOURS = (BLUE, RED, GREEN, "#9922ee", "#cc79a7", "#7f7f7f", "#cc0033")
"""Those of Okabe and Ito that have a contrast of 3 to white and to black, and others that colour-blind people tell from
them; as many as are no factor of the number of markers, so that 91 series have a mark of their own."""
MARKERS = "os^vD<>Ppd*X8"
INK, PAPER = "#0b0c0d", "#fefdfc"
"""Stand for the colours of the text and of what is behind it; the page's take their places."""
SHADE = "#8080804d"
"""A gray to be seen on white and on black."""
PIXELS = 1.4
"""Pixels of a point, where the page gives a picture its own width."""
SIZE = (4.8, 3.3)
"""Inches; a point is about a pixel where the page gives a figure all the width it wants."""
MAX_LETTERS = 52


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, whose parts take no space from one another."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as its file's ending says, aside and then renamed into place; parent folders are made.

    Texts in SVG and PDF are texts.
    """
    import matplotlib as mpl

    path, undated = Path(path), {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with file_aside(path) as aside, mpl.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(aside, format=path.suffix[1:], dpi=120, metadata=undated.get(path.suffix))
    return path


def mark(index: int) -> dict[str, Any]:
    """The colour and marker of a series, by its number."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def name_axes(axis: Axes, across: str, up: str, *, alpha: float = 0.2) -> None:
    """Say what stands on the axes, and draw a grid."""
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.grid(visible=True, which="both", alpha=alpha)


def number_axis(axis: Axes) -> None:
    """Make an axis logarithmic, with plain numbers at its ticks, at least some of them wherever it ends."""
    from matplotlib.ticker import AutoLocator, LogLocator, ScalarFormatter

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high > 5 * low:
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        axis.yaxis.set_major_formatter("{x:,.7g}")
    else:
        axis.yaxis.set_major_locator(AutoLocator())
        axis.yaxis.set_major_formatter(plain := ScalarFormatter(useOffset=False))
        plain.set_scientific(False)
    axis.minorticks_off()


def every(number: int, most: int) -> int:
    """How many of a number of things stand under one label of at most so many.

    Example:
        >>> every(30, 32), every(80, 32), every(80, 12)
        (1, 5, 10)
    """
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, number) if number <= most * step)


def block_axis(axis: Axes, num_blocks: int) -> None:
    """Number the cells of a map from left to right, and part them by lines."""
    named = range(0, num_blocks, every(num_blocks, 32))
    axis.set_xticks([block + 0.5 for block in named], [str(block) for block in named])
    axis.set_xlabel("block", loc="left", fontsize=9)
    axis.tick_params(length=2, labelsize=9)
    for block in range(1, num_blocks):
        axis.axvline(block, color=PAPER, linewidth=0.6)


def growing_legend(axis: Axes) -> None:
    """Put the legend below the only axes of a figure, which grows by its rows."""
    labels = axis.get_legend_handles_labels()[1]
    columns = 2 if all(len(label) <= 24 for label in labels) else 1
    figure = cast("Figure", axis.figure)  # no part of another figure
    figure.set_figheight(SIZE[1] + 0.19 * math.ceil(len(labels) / columns))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def points_drawing(points: Mapping[str, tuple[float, float]], across: str, up: str) -> str:
    """Named points, the horizontal axis falling to the right, the other logarithmic; nothing with fewer than two."""
    finite = {name: place for name, place in points.items() if all(map(math.isfinite, place))}

    def draw(axis: Axes) -> None:
        for index, (name, place) in enumerate(finite.items()):
            axis.plot(*place, label=name, linestyle="none", markersize=8, **mark(index))
        axis.invert_xaxis()
        name_axes(axis, across, up)
        number_axis(axis)
        growing_legend(axis)

    return svg(draw, f"{up}, against {across}") if len(finite) > 1 else ""


def map_piece(make: Callable[[], Figure], what: str) -> Piece:
    """A figure as a piece of the page that keeps its width; `what` is for those who cannot see it."""
    drawing = figure_svg(make, what)
    width = float(re.findall(r'viewBox="0 0 ([\d.]+) ', drawing)[0])
    return Piece("map", (drawing, round(PIXELS * width)))


def svg(draw: Callable[[Axes], None], what: str) -> str:
    """What a function draws onto axes, as an SVG element; `what` is for those who cannot see it."""

    def make() -> Figure:
        figure = new_figure(*SIZE)
        axis = figure.subplots()
        axis.spines[["top", "right"]].set_visible(False)
        draw(axis)
        return figure

    return figure_svg(make, what)


def figure_svg(make: Callable[[], Figure], what: str) -> str:
    """A figure as an SVG element in the colours of the page."""
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    with _style(dict.fromkeys(ink, INK) | dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none")):
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        _fitted(make()).savefig(text, format="svg", metadata=nothing)
    return _inline(text.getvalue(), " ".join(clean(what).split()))


@contextmanager
def _style(settings: Mapping[str, Any]) -> Iterator[None]:
    """Texts as they are, without complaints of letters that matplotlib's own font lacks: the page's has them."""
    import matplotlib as mpl

    plain = {"font.size": 10, "svg.fonttype": "none", "text.parse_math": False, **settings}
    with mpl.rc_context(cast("Any", plain)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def shortened(text: str, most: int = MAX_LETTERS) -> str:
    """As much of a text as there is room for: its beginning, and more of its end.

    Example:
        >>> shortened("/data/of/mine/models/small", 20)
        '/data/…/models/small'
    """
    return text if len(text) <= most else f"{text[: most // 3]}…{text[most // 3 + 1 - most :]}"


def _fitted(figure: Figure) -> Figure:
    """The figure, with as much of every text as it has room for and a page can hold."""
    from matplotlib.text import Text

    for label in figure.findobj(Text):
        label.set_text(shortened(" ".join(clean(label.get_text()).replace(r"\$", "$").split())))
    return figure


def _inline(element: str, what: str) -> str:
    """The element alone, as wide as its place, with names that no other figure of the page has."""
    element = element[element.index("<svg") :]
    # Comments repeat the text of labels; the style sheet would be the page's.
    element = re.sub(r"<!--.*?-->|<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2)
    element = element.replace(INK, "currentColor").replace(PAPER, "var(--page)")
    element = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", element)
    own = hashlib.sha256(element.encode()).hexdigest()[:8]
    element = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{own}-", element)
    return element.replace("<svg ", f'<svg role="img" aria-label="{escape(what)}" ', 1).strip()
