"""The map of scores: one picture of what every sublayer was worth and in which order they went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_prune.files import figure_text
from lit_prune.plan import PrunePlan
from lit_prune.report.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import FuncNorm
    from matplotlib.figure import Figure

KINDS = ("attention", "mlp", "block")
COLORMAP = "viridis"
REMOVED, NOT_SCORED = "#9a9a9a", "#e9e9e9"
CENTERED: dict[str, Any] = {"ha": "center", "va": "center", "color": "black"}


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
    mesh = _draw_last(axes[0], history, norm)
    for axis, kind, scores, order in zip(axes[1:], *history, strict=False):
        _draw_rounds(axis, kind, scores, order, norm)
    _add_colorbar(figure, mesh, axes, history.scores)
    _add_legend(figure, marked=len(axes) > 1)
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
    width = min(max(0.3 * num_blocks + 2.0, 7.5), 20.0)
    top, below = 0.42 * num_kinds, min(max(0.24 * num_rounds, 0.8), 6.0)
    figure = new_figure(width, top + num_panels * (below + 0.75) + 1.6)
    grid = figure.add_gridspec(1 + num_panels, 1, height_ratios=[top, *[below] * num_panels])
    if title:
        figure.suptitle(figure_text(title))
    return figure, [figure.add_subplot(grid[index, 0]) for index in range(1 + num_panels)]


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


def _draw_last(axis: Axes, history: _History, norm: FuncNorm) -> Any:
    from matplotlib.patches import Rectangle

    gone, (num_kinds, num_rounds, num_blocks) = history.order, history.scores.shape
    last = history.scores[:, -1] if num_rounds else np.full(gone.shape, math.nan)
    mesh = _heat_map(axis, np.where(gone > 0, math.nan, last), norm)
    size = min(9.0, 0.45 * 72 * axis.figure.get_figwidth() * 0.8 / num_blocks)  # type: ignore[union-attr]
    for row, block in np.argwhere(gone):
        axis.add_patch(Rectangle((block, row), 1, 1, facecolor=REMOVED, edgecolor="white", hatch="////", linewidth=0.6))
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        axis.text(block + 0.5, row + 0.5, str(gone[row, block]), fontsize=size, weight="bold", bbox=box, **CENTERED)
    for row, block in np.argwhere(np.isinf(last) & (gone == 0)):
        infinity = f"{last[row, block]}".replace("inf", "\N{INFINITY}")
        axis.text(block + 0.5, row + 0.5, infinity, fontsize=size, **CENTERED)
    axis.set_yticks(np.arange(num_kinds) + 0.5, history.kinds)
    if num_rounds > 1:
        title = f"the last of {num_rounds} rounds: what was left, and in which order the rest went"
    else:
        title = "what was scored, and what went" if num_rounds else "nothing was scored"
    _finish(axis, num_blocks, title)
    return mesh


def _draw_rounds(axis: Axes, kind: str, scores: NDArray[np.float64], order: NDArray[np.int64], norm: FuncNorm) -> None:
    from matplotlib.colors import ListedColormap

    num_rounds, num_blocks = scores.shape
    number = np.arange(1, num_rounds + 1)[:, None]
    earlier = (order > 0) & (order < number)
    _heat_map(axis, np.where(earlier, math.nan, scores), norm)
    cells = np.ma.masked_where(~earlier, earlier.astype(float))
    axis.pcolormesh(cells, cmap=ListedColormap([REMOVED]), edgecolors="white", linewidth=0.6)
    blocks = np.flatnonzero(order)
    axis.scatter(blocks + 0.5, order[blocks] - 0.5, marker="X", s=42, c="white", edgecolors="black", linewidths=0.8)
    every = math.ceil(num_rounds / 12)
    axis.set_yticks(np.arange(0, num_rounds, every) + 0.5, number[::every, 0])
    axis.set_ylabel("round")
    _finish(axis, num_blocks, f"{kind}, round by round")


def _heat_map(axis: Axes, scores: NDArray[np.float64], norm: FuncNorm) -> Any:
    axis.set_facecolor(NOT_SCORED)
    # Infinity has no place on a colour scale; it takes the colour of its end.
    shown = np.ma.masked_invalid(np.nan_to_num(scores, nan=math.nan, posinf=norm.vmax, neginf=norm.vmin))
    return axis.pcolormesh(shown, norm=norm, cmap=COLORMAP, edgecolors="white", linewidth=0.6)


def _finish(axis: Axes, num_blocks: int, title: str) -> None:
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, num_blocks) if num_blocks <= 32 * step)
    axis.set_title(title, fontsize=10)
    axis.set_xticks(np.arange(0, num_blocks, every) + 0.5, np.arange(0, num_blocks, every))
    axis.set_xlim(0, num_blocks)
    axis.set_xlabel("block")
    axis.invert_yaxis()
    axis.tick_params(length=2, labelsize=9)


def _add_colorbar(figure: Figure, mesh: Any, axes: list[Axes], scores: NDArray[np.float64]) -> None:
    above, below = np.any(scores > mesh.norm.vmax), np.any(scores < mesh.norm.vmin)
    extend = ("neither", "max", "min", "both")[int(above) + 2 * int(below)]
    labels = _tick_labels(mesh.norm)
    ticks = np.clip([float(label) for label in labels], mesh.norm.vmin, mesh.norm.vmax)
    width, height = figure.get_size_inches()
    bar = figure.colorbar(
        mesh, ax=axes, extend=extend, extendfrac=0.04, fraction=0.35 / width, aspect=0.8 * height / 0.2, pad=0.01
    )
    bar.set_label("importance (low goes first)", fontsize=9)
    bar.set_ticks(ticks.tolist(), labels=labels, fontsize=9)
    bar.minorticks_off()


def _tick_labels(norm: FuncNorm) -> list[str]:
    """Round numbers at about equal distances of colour, with as many digits as tell them apart."""
    numbers = [float(value) for value in norm.inverse(np.linspace(0, 1, 6))]
    for digits in range(2, 17):
        labels = [f"{float(f'{number:.{digits}g}'):.15g}" for number in numbers]
        if len(set(labels)) == len(labels):
            break
    return labels


def _add_legend(figure: Figure, *, marked: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(facecolor=REMOVED, edgecolor="white", hatch="////", label="removed (number: in which round)"),
        Patch(facecolor=NOT_SCORED, edgecolor=REMOVED, label="not scored"),
    ]
    if marked:
        handles.append(
            Line2D([], [], color="white", markeredgecolor="black", marker="X", markersize=7, linestyle="none",
                   label="removed after this round")
        )  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
