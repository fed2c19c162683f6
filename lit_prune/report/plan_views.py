"""What a plan tells: the map of the network, the search as a table and curves, how its model is made and used."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_prune.errors import LitPruneError
from lit_prune.export import usage
from lit_prune.loading.models import skeleton
from lit_prune.measure import perplexity_of
from lit_prune.plan import KINDS, PLAN_FILE, SETTINGS, PrunePlan, PruneStep, SublayerId
from lit_prune.report.drawing import BLUE, map_piece, name_axes, svg
from lit_prune.report.pieces import Piece, Table, number, ppl
from lit_prune.report.score_map import plan_score_map
from lit_prune.report.summary import chosen_among, shares_left

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUND = ("round", "epoch", "removed", "score", "parameters", "left", "loss before", "loss after", "ppl after",
         "measured", "ties", "passes")  # fmt: skip
MOST_COLUMNS = (10, 16, 24, 32)
"""Blocks that stand side by side on screens of four widths: see `.network` in style.css."""
Place = tuple[str, int | None, float | None]
"""The kind of a sublayer, the round in which it went, and the share of sets that it was chosen in."""
GENERATE = """
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})

prompt = tokenizer("The capital of France is", return_tensors="pt", return_token_type_ids=False)
tokens = model.generate(**prompt, max_new_tokens=32)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))"""


def search_pieces(plan: PrunePlan) -> Iterator[Piece]:
    """What was removed, round by round, and the scores that decided it."""
    if plan.model.num_blocks:
        yield Piece("heading", "What was removed")
        yield Piece("network", _network(plan))
    if plan.steps:
        yield Piece("heading", "The search, round by round")
        yield Piece("figures", [_search_drawing(plan)])
        yield Piece("table", _rounds_table(plan))
    if any(step.scores for step in plan.steps):
        yield Piece("heading", "Scores")
        yield map_piece(partial(plan_score_map, plan), "Map of the scores of every sublayer, round by round")


def calibration_ppl(plan: PrunePlan) -> tuple[str, str] | None:
    """Perplexity on the calibration text, ahead of the first removal and after the last, where both were measured."""
    first, last = (plan.steps[0].nll_before, plan.steps[-1].nll_after) if plan.steps else (None, None)
    return None if first is None or last is None else (ppl(perplexity_of(first)), ppl(perplexity_of(last)))


def _network(plan: PrunePlan) -> tuple[list[int], list[tuple[int, list[Place]]], Table]:
    """Columns for screens of each width, the sublayers block by block, and what there is to say of each."""
    num_blocks = plan.model.num_blocks
    columns = [math.ceil(num_blocks / math.ceil(num_blocks / most)) for most in MOST_COLUMNS]
    draws = plan.steps[0].chosen if plan.steps else {}
    rounds = {sublayer: index for index, step in enumerate(plan.steps, 1) for sublayer in step.removed.sublayers}
    blocks, said = [], []
    for block in range(num_blocks):
        own = [SublayerId(block, kind) for kind in KINDS]
        chosen = [draws.get(str(sublayer), draws.get(f"block.{block}")) for sublayer in own]
        blocks.append((block, [(each.kind, rounds.get(each), share) for each, share in zip(own, chosen, strict=True)]))
        said.append([str(block), *(_said(*each, plan) for each in zip(own, map(rounds.get, own), chosen, strict=True))])
    note = f"Chosen: the share of {chosen_among(plan)}." if draws else ""
    return columns, blocks, Table.of(("block", *KINDS), said, words=("block", *KINDS), note=note)


def _said(sublayer: SublayerId, index: int | None, chosen: float | None, plan: PrunePlan) -> str:
    said = ", ".join(_removal(plan.steps[index - 1], index)) if index else f"stays{_last_score(sublayer, plan)}"
    return said if chosen is None else f"{said}, chosen in {chosen:.0%}"


def _removal(step: PruneStep, index: int) -> Iterator[str]:
    yield f"removed in round {index}"
    if step.epoch is not None:
        yield f"epoch {step.epoch}"
    if len(step.removed.sublayers) > 1:
        yield f"as part of {step.removed.name}"
    if step.score is not None:
        yield f"score {number(step.score)}"
    if step.ties:
        yield f"no lower than chance makes those of {', '.join(step.ties)}"


def _last_score(sublayer: SublayerId, plan: PrunePlan) -> str:
    names = (str(sublayer), f"block.{sublayer.block}")
    scores = [step.scores[name] for step in reversed(plan.steps) for name in names if name in step.scores]
    return f", score in the last round that gave one {number(scores[0])}" if scores else ""


def _rounds_table(plan: PrunePlan) -> Table:
    rounds = enumerate(zip(plan.steps, shares_left(plan)[1:], strict=True), 1)
    rows = ([str(index), *_round(step, left)] for index, (step, left) in rounds)
    note = "Losses: mean of a token (nats) on the calibration text, just before and just after the removal."
    if any(step.measured for step in plan.steps):
        note += " Measured: candidates measured in the round, of those there were; the others' scores are older."
    if any(step.margins for step in plan.steps):
        note += " Ties: others whose score was within one standard error of the lowest."
    return Table.of(ROUND, rows, words=ROUND[:3], note=note)


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
    yield str(len(step.ties)) if step.margins else ""
    yield f"{step.cost:,.1f}"


def _search_drawing(plan: PrunePlan) -> str:
    """Perplexity on the calibration tokens against the parameters left, where it was measured."""
    losses = [plan.steps[0].nll_before, *(step.nll_after for step in plan.steps)]
    measured = ((left, nll) for left, nll in zip(shares_left(plan), losses, strict=True) if nll is not None)
    points = [(100 * left, perplexity_of(nll)) for left, nll in measured if math.isfinite(perplexity_of(nll))]

    def draw(axis: Axes) -> None:
        axis.plot(*zip(*points, strict=True), color=BLUE, marker="o", markersize=4)
        axis.invert_xaxis()
        name_axes(axis, "parameters left (%)", "perplexity, calibration tokens")

    return svg(draw, "Perplexity on the calibration tokens, against parameters left") if len(points) > 1 else ""


def usage_pieces(
    folder: Path, name: str, plan: PrunePlan | None, *, trust_remote_code: bool = False
) -> Iterator[Piece]:
    """How the model in a folder, `name` in the user's words, is loaded, and what commands of lit-prune do with it."""
    yield Piece("heading", "How to use it")
    try:
        how = usage(skeleton(folder, trust_remote_code=trust_remote_code), name)
    except LitPruneError as error:
        yield Piece("paragraph", f"How to load it is not known: {error}")
    else:
        generate = GENERATE.format(name=dumps(name, ensure_ascii=False))
        yield Piece("code", f"{how.code}\n{generate}" if any(folder.glob("tokenizer*")) else how.code)
        yield Piece("paragraph", how.note)
    yield Piece("commands", dict(_commands(name, plan)))


def _commands(folder: str, plan: PrunePlan | None) -> Iterator[tuple[str, str]]:
    model, base = shlex.quote(folder), shlex.quote(plan.model.name) if plan and plan.model.name else ""
    if base:
        yield "measure it", f"lit-prune evaluate {model} --against {base} --output evaluation"
    yield (
        "load it where lit-prune is not installed",
        f"lit-prune export {model} --format hf-remote-code --output anywhere",
    )
    if plan is not None and base and not plan.healing:
        yield "get back what was lost", f"lit-prune heal {model} --output healed"
        steps = shlex.quote(str(Path(folder) / PLAN_FILE))
        yield "remove the same from another copy", f"lit-prune apply {steps} {base} --output again"


def made_pieces(plan: PrunePlan | None, files: Mapping[str, str]) -> Iterator[Piece]:
    """The settings of a plan, each with its names and values, and files of settings; what is empty is left out."""
    data = plan.to_dict() if plan else {}
    if (made := {name: list(_flat(data[name])) for name in ("model", *SETTINGS) if data.get(name)}) or files:
        yield Piece("heading", "How it was made")
        yield Piece("made", made)
    yield from (Piece("file", named) for named in files.items())


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Names and values, those of a mapping inside behind its own name.

    Example:
        >>> list(_flat({"lora": {"rank": 8}, "data": ["a", "b"], "dense": None}))
        [('lora.rank', '8'), ('data', 'a, b')]
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif value not in (None, "", []):
            yield f"{above}{name}", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
