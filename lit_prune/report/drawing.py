"""How pictures are drawn: figures as PNG, axes as inline SVG whose text can be searched and read aloud.

Figures are made without pyplot, which would keep each of them for ever and may look for a display.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lit_prune.files import clean, file_aside
from lit_prune.report.pieces import Piece

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
COLOURS = (BLUE, ORANGE, GREEN, RED, "#cc79a7", "#56b4e9", "#7f7f7f")
"""Okabe and Ito's, which people who are colour-blind tell apart, without black and yellow; as many as are no factor of
the number of markers, so that 91 series have a mark of their own."""
MARKERS = "os^vD<>Ppd*X8"
INK = "#0b0c0d"
"""Stands for the colour of the text; the page's takes its place."""
SIZE = (5.2, 3.5)
"""Inches; a point is about a pixel where the page gives a figure all the width it wants."""
MAX_LETTERS = 56


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, whose parts take no space from one another."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG file, aside and then renamed into place; parent folders are made."""
    with file_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
    return Path(path)


def mark(index: int) -> dict[str, Any]:
    """The colour and marker of a series, by its number."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def name_axes(axis: Axes, across: str, up: str, *, alpha: float = 0.2) -> None:
    """Say what stands on the axes, and draw a grid."""
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.grid(visible=True, which="both", alpha=alpha)


def number_axis(axis: Axes) -> None:
    """Write ticks of a logarithmic axis as plain numbers, at least some of them wherever it ends."""
    from matplotlib.ticker import AutoLocator, LogLocator

    low, high = axis.get_ylim()
    subs = (1, 2, 5) if high < 1000 * low else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs) if high > 5 * low else AutoLocator())
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:,.6g}")


def growing_legend(axis: Axes) -> None:
    """Put the legend below the only axes of a figure, which grows by its rows."""
    labels = axis.get_legend_handles_labels()[1]
    columns = 2 if all(len(label) <= MAX_LETTERS / 2 for label in labels) else 1
    figure = cast("Figure", axis.figure)  # no part of another figure
    figure.set_figheight(SIZE[1] + 0.19 * math.ceil(len(labels) / columns))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def points_drawing(points: Mapping[str, tuple[float, float]], across: str, up: str) -> str:
    """Named points, the horizontal axis falling to the right, the other logarithmic; nothing with fewer than two."""
    finite = {name: place for name, place in points.items() if all(map(math.isfinite, place))}

    def draw(axis: Axes) -> None:
        for index, (name, place) in enumerate(finite.items()):
            axis.plot(*place, label=name, linestyle="none", markersize=8, **mark(index))
        axis.set_yscale("log")
        axis.invert_xaxis()
        name_axes(axis, across, up)
        number_axis(axis)
        growing_legend(axis)

    return svg(draw) if len(finite) > 1 else ""


def png_piece(draw: Callable[[], Figure], what: str, *, shorten: bool = False) -> Piece:
    """A figure as a piece of the page, with words for those who cannot see it."""
    data = io.BytesIO()
    with _style({}):
        figure = _shortened(draw()) if shorten else draw()
        figure.savefig(data, format="png", dpi=110)
    return picture(data.getvalue(), what)


def picture(data: bytes, what: str) -> Piece:
    """A PNG as a piece of the page, at an address that holds it."""
    return Piece("picture", (f"data:image/png;base64,{base64.b64encode(data).decode()}", what))


def svg(draw: Callable[[Axes], None]) -> str:
    """What a function draws onto axes, as an SVG element."""
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    with _style(dict.fromkeys(ink, INK)):
        figure = new_figure(*SIZE)
        figure.patch.set_visible(False)
        axis = figure.subplots()
        axis.patch.set_visible(False)
        axis.spines[["top", "right"]].set_visible(False)
        draw(axis)
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        _shortened(figure).savefig(text, format="svg", metadata=nothing)
    return _inline(text.getvalue())


@contextmanager
def _style(settings: Mapping[str, Any]) -> Iterator[None]:
    """Texts as they are, without complaints of letters that matplotlib's own font lacks: the page's has them."""
    import matplotlib as mpl

    plain = {"font.size": 10, "svg.fonttype": "none", "text.parse_math": False, **settings}
    with mpl.rc_context(cast("Any", plain)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def _shortened(figure: Figure) -> Figure:
    """The figure, with as much of every text as it has room for and a page can hold."""
    from matplotlib.text import Text

    for label in figure.findobj(Text):
        text = " ".join(clean(label.get_text()).replace(r"\$", "$").split())
        label.set_text(text if len(text) <= MAX_LETTERS else f"{text[:16]}…{text[17 - MAX_LETTERS :]}")
    return figure


def _inline(element: str) -> str:
    """The element alone, as wide as its place, with names that no other figure of the page has."""
    element = element[element.index("<svg") :]
    # Comments repeat the text of labels; the style sheet would be the page's.
    element = re.sub(r"<!--.*?-->|<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2).replace(INK, "currentColor")
    element = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", element)
    own = hashlib.sha256(element.encode()).hexdigest()[:8]
    element = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{own}-", element)
    return element.replace("<svg ", '<svg role="img" ', 1).strip()
