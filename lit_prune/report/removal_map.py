"""The map of removals: which sublayers each method took out of a model, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_prune.evaluation import Result
from lit_prune.files import figure_text
from lit_prune.plan import KINDS, Candidate
from lit_prune.report.drawing import BLUE, PAPER, RED, SHADE, block_axis, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def removal_figure(rows: Sequence[Result]) -> Figure:
    """Draw which sublayers each method took out of one model at one amount: a line a draw, attention above mlp."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    num_blocks, num_rows = rows[0].num_blocks, len(rows)
    grid = np.zeros((2 * num_rows, num_blocks))
    for index, row in enumerate(rows):
        for sublayer in (part for name in row.removed for part in Candidate.parse(name).sublayers):
            kind = KINDS.index(sublayer.kind)
            grid[2 * index + kind, sublayer.block] = 1 + kind
    names = 0.1 * max(len(_name(row)) for row in rows)
    figure = new_figure(max(0.3 * num_blocks + 0.4 + names, 3.6), 0.36 * num_rows + 1.3)
    axis = figure.subplots()
    colours, place = {"stays": SHADE, "attention removed": BLUE, "mlp removed": RED}, (0, num_blocks, 2 * num_rows, 0)
    cells: dict[str, Any] = {"aspect": "auto", "interpolation": "none", "extent": place}
    axis.imshow(grid, cmap=ListedColormap(list(colours.values())), vmin=0, vmax=2, **cells)
    for index in range(1, num_rows):
        axis.axhline(2 * index, color=PAPER, linewidth=3)
    block_axis(axis, num_blocks)
    axis.set_yticks(range(1, 2 * num_rows, 2), [figure_text(_name(row)) for row in rows])
    axis.tick_params(length=0)
    axis.set_frame_on(False)
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    columns = 3 if figure.get_figwidth() > 5 else 1
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
    return figure


def _name(row: Result) -> str:
    return f"{row.label}, draw {row.draw + 1}" if row.draw else row.label
