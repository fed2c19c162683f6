"""What a plan tells of its search: the map of the network, the rounds as a table, the curve, and the map of scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from lit_prune.measure import perplexity_of
from lit_prune.plan import KINDS, PrunePlan, PruneStep, SublayerId
from lit_prune.report.drawing import BLUE, name_axes, png_piece, svg
from lit_prune.report.pieces import Piece, Table, number, ppl, titled
from lit_prune.report.score_map import plan_score_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHORT = {"attention": "attn", "mlp": "mlp"}
ROUND = ("round", "epoch", "removed", "score", "parameters", "left", "loss before", "loss after", "ppl after",
         "measured", "order", "passes")  # fmt: skip


def search_pieces(plan: PrunePlan) -> Iterator[Piece]:
    """What was removed, round by round, and the scores that decided it."""
    yield from titled("What was removed", [Piece("network", network)] if (network := list(_network(plan))) else [])
    if plan.steps:
        yield Piece("heading", "The search, round by round")
        yield Piece("figures", [_search_drawing(plan)])
        yield Piece("table", _rounds_table(plan))
    if any(step.scores for step in plan.steps):
        yield Piece("heading", "Scores")
        yield png_piece(partial(plan_score_map, plan), "Map of the scores of every sublayer, round by round")


def calibration_ppl(plan: PrunePlan) -> tuple[str, str] | None:
    """Perplexity on the calibration text, ahead of the first removal and after the last, where both were measured."""
    first, last = (plan.steps[0].nll_before, plan.steps[-1].nll_after) if plan.steps else (None, None)
    return None if first is None or last is None else (ppl(perplexity_of(first)), ppl(perplexity_of(last)))


def percent_left(plan: PrunePlan) -> list[float]:
    """Percent of the parameters that are left: of the whole model, and after each removal."""
    left, gone = [100.0], 0
    for step in plan.steps:
        gone += step.num_parameters
        left.append(100 * (1 - gone / plan.model.num_parameters))
    return left


def _network(plan: PrunePlan) -> Iterator[tuple[int, list[dict[str, str]]]]:
    """Every block of the original model with its sublayers: CSS classes, label, and what is said of it."""
    rounds = {sublayer: index for index, step in enumerate(plan.steps, 1) for sublayer in step.removed.sublayers}
    for block in range(plan.model.num_blocks):
        sublayers = [SublayerId(block, kind) for kind in KINDS]
        yield block, [_place(sublayer, plan, rounds.get(sublayer)) for sublayer in sublayers]


def _place(sublayer: SublayerId, plan: PrunePlan, index: int | None) -> dict[str, str]:
    if index is None:
        said = f"{sublayer}: stays{_last_score(sublayer, plan)}"
        return {"classes": sublayer.kind, "label": SHORT[sublayer.kind], "title": said}
    said = ", ".join(_removal(plan.steps[index - 1], index))
    return {"classes": f"{sublayer.kind} gone", "label": str(index), "title": f"{sublayer}: {said}"}


def _removal(step: PruneStep, index: int) -> Iterator[str]:
    yield f"removed in round {index}"
    if step.epoch is not None:
        yield f"epoch {step.epoch}"
    if len(step.removed.sublayers) > 1:
        yield f"as part of {step.removed.name}"
    if step.score is not None:
        yield f"score {number(step.score)}"


def _last_score(sublayer: SublayerId, plan: PrunePlan) -> str:
    for step in reversed(plan.steps):
        for name in (str(sublayer), f"block.{sublayer.block}"):
            if name in step.scores:
                return f", score in the last round that gave one {number(step.scores[name])}"
    return ""


def _rounds_table(plan: PrunePlan) -> Table:
    left, rows = plan.model.num_parameters, []
    for index, step in enumerate(plan.steps, 1):
        left -= step.num_parameters
        rows.append([str(index), *_round(step, left / plan.model.num_parameters)])
    notes = ["Losses: mean of a token (nats) on the calibration text, just before and just after the removal."]
    if any(step.measured for step in plan.steps):
        notes.append("Measured: candidates measured in the round, of those there were; the others' scores are older.")
    return Table.of(ROUND, rows, words=ROUND[:3], note=" ".join(notes))


def _round(step: PruneStep, left: float) -> Iterator[str]:
    yield "" if step.epoch is None else str(step.epoch)
    yield step.removed.name
    error = step.errors.get(step.removed.name)
    yield "" if step.score is None else number(step.score) + (f" ± {number(error)}" if error is not None else "")
    yield f"{step.num_parameters:,}"
    yield f"{left:.1%}"
    yield from ("" if nll is None else f"{nll:.4f}" for nll in (step.nll_before, step.nll_after))
    yield "" if step.nll_after is None else ppl(perplexity_of(step.nll_after))
    yield f"{len(step.measured)} of {len(step.scores)}" if step.measured else str(len(step.scores) or "")
    yield "disturbed" if step.disturbed else ""
    yield f"{step.cost:,.1f}"


def _search_drawing(plan: PrunePlan) -> str:
    """Perplexity on the calibration tokens against the parameters left, where it was measured."""
    losses = [plan.steps[0].nll_before, *(step.nll_after for step in plan.steps)]
    points = [
        (left, perplexity_of(nll)) for left, nll in zip(percent_left(plan), losses, strict=True) if nll is not None
    ]
    known = [(left, found) for left, found in points if math.isfinite(found)]

    def draw(axis: Axes) -> None:
        axis.plot(*zip(*known, strict=True), color=BLUE, marker="o", markersize=4)
        axis.invert_xaxis()
        name_axes(axis, "parameters left (%)", "perplexity, calibration tokens")

    return svg(draw) if len(known) > 1 else ""
