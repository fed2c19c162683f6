"""The map of scores: one picture of what every sublayer was worth and in which order they went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_prune.files import figure_text
from lit_prune.plan import PrunePlan
from lit_prune.report.drawing import INK, PAPER, block_axis, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import FuncNorm
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

KINDS = ("attention", "mlp", "block")
COLORMAP = "viridis"
REMOVED: dict[str, Any] = {"facecolor": "#9a9a9a", "edgecolor": PAPER, "hatch": "////", "linewidth": 0.6}
NOT_SCORED: dict[str, Any] = {"facecolor": "none", "edgecolor": "#808080", "hatch": "\\\\", "linewidth": 0.0}
CROSS: dict[str, Any] = {"marker": "X", "s": 42, "facecolor": "white", "edgecolor": "black", "linewidth": 0.8,
                         "label": "removed after this round"}  # fmt: skip
CENTERED: dict[str, Any] = {"ha": "center", "va": "center", "weight": "bold"}
BAR = 3.0
"""Inches of the bar of colours."""


class _History(NamedTuple):
    """Scores [kind, round, block], NaN where there is none, and when what went, [kind, block]: rounds from 1, or 0."""

    kinds: tuple[str, ...]
    scores: NDArray[np.float64]
    order: NDArray[np.int64]


def score_map(
    rounds: Sequence[Mapping[str, float]], removed: Sequence[str], *, num_blocks: int, title: str = ""
) -> Figure:
    """Draw the last round's scores with what is gone, and below it, of several rounds, each round's.

    The colours are linear near the lowest scores and logarithmic far above them, and end at the 95th percentile:
    first blocks often score a hundred times more than all others.

    Args:
        rounds: Scores by candidate name (`attention.5`, `mlp.12`, `block.3`), first round first. Those of sets
            (`block.3+mlp.7`) have no place in it.
        removed: What went after each round, sets too.
        num_blocks: The number of blocks of the original model.
        title: The text above the picture.
    """
    history = _history(rounds, removed, num_blocks)
    figure, axes = _canvas(history, len(history.kinds) if len(rounds) > 1 else 0, title)
    norm = _robust_norm(history.scores)
    image = _draw_last(axes[0], history, norm)
    for axis, kind, scores, order in zip(axes[1:], *history, strict=False):
        _draw_rounds(axis, kind, scores, order, norm)
    for axis in axes[:-1]:
        axis.set_xlabel("")
    _add_colorbar(figure, axes, image, history.scores)
    _add_legend(figure, history)
    return figure


def plan_score_map(plan: PrunePlan, title: str = "") -> Figure:
    """Draw `score_map` of the rounds that a plan records, with a title above the picture."""
    rounds, removed = [step.scores for step in plan.steps], [step.removed.name for step in plan.steps]
    return score_map(rounds, removed, num_blocks=plan.model.num_blocks, title=title)


def _history(rounds: Sequence[Mapping[str, float]], removed: Sequence[str], num_blocks: int) -> _History:
    # A set is removed member by member; its score is of none of them.
    parts = [gone.split("+") for gone in removed]
    names = {name for found in (*rounds, *parts) for name in found if "+" not in name}
    split = {name: name.split(".") for name in names}
    present = {kind for kind, _ in split.values()}
    kinds = tuple(kind for kind in KINDS if kind in present) or KINDS[:2]
    places = {name: (kinds.index(kind), int(block)) for name, (kind, block) in split.items()}
    scores = np.full((len(kinds), len(rounds), num_blocks), math.nan)
    order = np.zeros((len(kinds), num_blocks), dtype=np.int64)
    for index, (found, gone) in enumerate(zip(rounds, parts, strict=True)):
        for name in names & found.keys():
            kind, block = places[name]
            scores[kind, index, block] = found[name]
        for name in gone:
            order[places[name]] = index + 1
    return _History(kinds, scores, order)


def _canvas(history: _History, num_panels: int, title: str) -> tuple[Figure, list[Axes]]:
    num_kinds, num_rounds, num_blocks = history.scores.shape
    width = min(max(0.3 * num_blocks + 1.2, BAR + 0.9, 0.09 * len(title)), 30.0)
    panels = [0.42 * num_kinds, *[min(max(0.24 * num_rounds, 0.5), 6.0)] * num_panels]
    figure = new_figure(width, sum(panels) + 0.55 * len(panels) + 1.75)
    if title:
        figure.suptitle(figure_text(title), fontsize=11)
    return figure, list(figure.subplots(len(panels), 1, squeeze=False, height_ratios=panels)[:, 0])


def _robust_norm(scores: NDArray[np.float64]) -> FuncNorm:
    """Colours by asinh of the distance from the lowest score: neither 0 nor a far outlier needs a special case."""
    from matplotlib.colors import FuncNorm

    finite = scores[np.isfinite(scores)]
    low, middle, high = np.percentile(finite, [0, 25, 95]) if finite.size else (0.0, 0.5, 1.0)
    if high <= low:
        high = low + max(abs(low), 1.0)
    width = max(middle - low, 0.01 * (high - low))
    return FuncNorm(
        (lambda x: np.arcsinh((np.asarray(x) - low) / width), lambda y: np.sinh(np.asarray(y)) * width + low),
        vmin=low,
        vmax=high,
    )


def _draw_last(axis: Axes, history: _History, norm: FuncNorm) -> AxesImage:
    gone, (num_kinds, num_rounds, num_blocks) = history.order, history.scores.shape
    last = history.scores[:, -1] if num_rounds else np.full(gone.shape, math.nan)
    image = _heat_map(axis, np.where(gone > 0, math.nan, last), norm)
    style = {**CENTERED, "fontsize": min(9.0, 0.45 * 72 * axis.figure.get_figwidth() * 0.8 / num_blocks)}  # type: ignore[union-attr]
    for row, block in np.argwhere(gone).tolist():
        _hatch(axis, block, row, 1)
        box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
        axis.text(block + 0.5, row + 0.5, str(gone[row, block]), color=INK, bbox=box, **style)
    for row, block in np.argwhere(np.isinf(last) & (gone == 0)):
        infinity = f"{last[row, block]}".replace("inf", "\N{INFINITY}")
        # On the end of the colours that it takes.
        axis.text(block + 0.5, row + 0.5, infinity, color="black" if last[row, block] > 0 else "white", **style)
    axis.set_yticks(np.arange(num_kinds) + 0.5, history.kinds)
    if num_rounds > 1:
        title = f"after {num_rounds} rounds"
    else:
        title = "what was scored, and what went" if num_rounds else "nothing was scored"
    axis.set_title(title, fontsize=10, loc="left")
    return image


def _draw_rounds(axis: Axes, kind: str, scores: NDArray[np.float64], order: NDArray[np.int64], norm: FuncNorm) -> None:
    num_rounds = len(scores)
    _heat_map(axis, np.where(_gone_before(order, num_rounds), math.nan, scores), norm)
    blocks = np.flatnonzero(order)
    for block in map(int, blocks):
        _hatch(axis, block, int(order[block]), num_rounds - int(order[block]))
    axis.scatter(blocks + 0.5, order[blocks] - 0.5, **CROSS)
    every = math.ceil(num_rounds / 12)
    axis.set_yticks(np.arange(0, num_rounds, every) + 0.5, map(str, range(1, num_rounds + 1, every)))
    axis.set_ylabel("round")
    axis.set_title(f"{kind}, round by round", fontsize=10, loc="left")


def _gone_before(order: NDArray[np.int64], num_rounds: int) -> NDArray[np.bool_]:
    """Which cells went ahead of a round: [round, block], or for all kinds [kind, round, block]."""
    return (order[..., None, :] > 0) & (order[..., None, :] < np.arange(1, num_rounds + 1)[:, None])


def _hatch(axis: Axes, block: int, row: int, height: int) -> None:
    from matplotlib.patches import Rectangle

    if height:
        axis.add_patch(Rectangle((block, row), 1, height, **REMOVED))


def _heat_map(axis: Axes, scores: NDArray[np.float64], norm: FuncNorm) -> AxesImage:
    """Draw a pixel a score: the picture stays small with any number of them."""
    num_rows, num_blocks = scores.shape
    axis.patch.set(**NOT_SCORED)
    # Infinity has no place on a colour scale; it takes the colour of its end.
    shown = np.ma.masked_invalid(np.nan_to_num(scores, nan=math.nan, posinf=norm.vmax, neginf=norm.vmin))
    place = (0, num_blocks, num_rows, 0)
    image = axis.imshow(shown, norm=norm, cmap=COLORMAP, aspect="auto", interpolation="none", extent=place)
    block_axis(axis, num_blocks)
    for row in range(1, num_rows):
        axis.axhline(row, color=PAPER, linewidth=0.6)
    return image


def _add_colorbar(figure: Figure, axes: list[Axes], image: AxesImage, scores: NDArray[np.float64]) -> None:
    """Explain the colours below the map and on the left, where a narrow screen begins."""
    norm: Any = image.norm
    above, below = np.any(scores > norm.vmax), np.any(scores < norm.vmin)
    extend = ("neither", "max", "min", "both")[int(above) + 2 * int(below)]
    labels = _tick_labels(norm)
    ticks = np.clip([float(label) for label in labels], norm.vmin, norm.vmax)
    height = figure.get_figheight()
    shape: dict[str, Any] = {"shrink": BAR / (figure.get_figwidth() - 0.8), "anchor": (0.0, 1.0), "pad": 0.02}
    shape |= {"fraction": 0.25 / (height - 1.5), "aspect": BAR / 0.16, "extend": extend, "extendfrac": 0.04}
    bar = figure.colorbar(image, ax=axes, location="bottom", **shape)
    bar.ax.set_title("importance (low goes first)", fontsize=10, loc="left")
    bar.set_ticks(ticks.tolist(), labels=labels, fontsize=9)
    bar.minorticks_off()


def _tick_labels(norm: FuncNorm) -> list[str]:
    """Round numbers at about equal distances of colour, with as many digits as tell them apart, as room lets."""
    numbers = [float(value) for value in norm.inverse(np.linspace(0, 1, 6))]
    for digits in range(2, 17):
        labels = [f"{float(f'{number:.{digits}g}'):.15g}" for number in numbers]
        if len(set(labels)) == len(labels):
            break
    room, kept = 72 * BAR, labels[:1]
    for label in labels[1:]:
        points = room * float(norm(float(label)) - norm(float(kept[-1])))
        if points > 2.75 * len(kept[-1] + label) + 6:
            kept.append(label)
    return kept


def _add_legend(figure: Figure, history: _History) -> None:
    """Say what those marks mean that the map has."""
    from matplotlib.patches import Patch

    num_rounds = history.scores.shape[1]
    # Of no round, all cells of the map are without scores.
    gone = _gone_before(history.order, max(num_rounds, 1))
    gone[:, -1] |= history.order > 0
    handles: list[Any] = []
    if history.order.any():
        handles.append(Patch(**REMOVED, label="removed (number: in which round)"))
    if not num_rounds or (np.isnan(history.scores) & ~gone).any():
        handles.append(Patch(**NOT_SCORED, label="not scored"))
    if history.order.any() and num_rounds > 1:
        handles += figure.axes[1].get_legend_handles_labels()[0]
    if handles:
        figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)
