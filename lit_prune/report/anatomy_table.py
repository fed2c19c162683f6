"""An inventory of a model's sublayers on the screen: what each costs, and what can be done with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from lit_prune.anatomy import LINEAR, SCALE
from lit_prune.costs import Inventory, SublayerFigures
from lit_prune.plan.prune_plan import KINDS, SublayerId
from lit_prune.report.screen import table, text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

COSTS = ("blocks", "sublayer", "parameters", "active", "share", "FLOP", "of all", "KV bytes")
WAYS = ("blocks", "sublayer", "module", "residual form", "folds", "whole block")
LEFT_ALIGNED = ("blocks", "sublayer", *WAYS)
NOTHING = "-"
WORDS = {
    SCALE: "a factor can make up for some of the loss, folded into weights behind it",
    LINEAR: "a matrix can make up for some of the loss, folded into weights before it",
}
FILE_WIDTH = 120
"""Columns where no terminal says how many: a table is for reading, in a file too."""

Row = tuple[int, str, tuple[str, ...]]
"""Block, kind, and the cells behind them."""


def print_inventory(inventory: Inventory, *, every_block: bool = False) -> None:
    """Show an inventory on the screen.

    Args:
        inventory: Of a model.
        every_block: Give each block rows of its own, where neighbours that are the same stand together otherwise.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    for part in _on_screen(console, inventory, every_block):
        console.print(part)


def _on_screen(console: Console, inventory: Inventory, every_block: bool) -> Iterator[RenderableType]:
    yield text(console, f"{inventory.model} ({inventory.architecture})", "bold")
    for fact in _facts(inventory):
        yield text(console, fact)
    heads, costs = _without_active(inventory, [*_grouped(_costs(inventory), every_block), *_sums(inventory)])
    yield table(console, heads, costs, left=LEFT_ALIGNED)
    yield table(console, WAYS, _grouped(map(_ways, inventory.sublayers), every_block), left=LEFT_ALIGNED)
    for note in _notes(inventory):
        yield text(console, note)


def _facts(inventory: Inventory) -> Iterator[str]:
    here = "" if inventory.num_blocks_in_list == inventory.num_blocks else f"{inventory.num_blocks_in_list} of "
    yield f"{here}{inventory.num_blocks} blocks in {inventory.blocks_path}, hidden size {inventory.hidden_size:,}"
    active = inventory.num_active_parameters
    per_token = "" if active == inventory.num_parameters else f"; a token goes through {active:,}"
    weights = f"{_short(inventory.weight_bytes)}B in {inventory.dtype}"
    yield f"{inventory.num_parameters:,} parameters, {weights}{per_token}"
    most = f" (the model is made for {inventory.max_context:,})" if inventory.max_context else ""
    yield f"A token after {inventory.context:,} others{most}: {_short(inventory.flops)}FLOP"
    yield f"KV cache of a token: {inventory.kv_bytes:,} bytes in {inventory.dtype}"
    if inventory.removed:
        yield f"Gone: {', '.join(inventory.removed)}"


def _costs(inventory: Inventory) -> list[Row]:
    present = [(each.block, each.kind, _cost_cells(each)) for each in inventory.sublayers]
    ids = [SublayerId.parse(each) for each in inventory.removed]
    gone = [(each.block, str(each.kind), ("gone", *[NOTHING] * 5)) for each in ids]
    return sorted([*present, *gone], key=lambda row: row[0])


def _cost_cells(each: SublayerFigures) -> tuple[str, ...]:
    amounts = (each.num_parameters, each.num_active_parameters, each.flops, each.kv_bytes)
    return _cells(amounts, each.parameters_share, each.flops_share)


def _cells(amounts: Sequence[int], share: float, flops_share: float) -> tuple[str, ...]:
    parameters, active, flops, kv_bytes = amounts
    return f"{parameters:,}", f"{active:,}", _percent(share), _short(flops), _percent(flops_share), f"{kv_bytes:,}"


def _percent(share: float) -> str:
    return "100%" if share == 1 else f"{share:.2%}"


def _sums(inventory: Inventory) -> Iterator[list[str]]:
    """One row for each kind, one for what is no sublayer, one for the whole."""
    whole = (inventory.num_parameters, inventory.num_active_parameters, inventory.flops, inventory.kv_bytes)
    rest = whole
    for kind in KINDS:
        own = [each for each in inventory.sublayers if each.kind == kind]
        sums = [
            sum(getattr(each, name) for each in own) for name in ("num_parameters", "num_active_parameters", "flops")
        ]
        amounts = (*sums, sum(each.kv_bytes for each in own))
        rest = tuple(left - amount for left, amount in zip(rest, amounts, strict=True))
        yield _sum(f"all {len(own)}", kind, amounts, whole)
    yield _sum("rest", "", rest, whole)
    yield _sum("model", "", whole, whole)


def _sum(blocks: str, name: str, amounts: Sequence[int], whole: Sequence[int]) -> list[str]:
    return [blocks, name, *_cells(amounts, amounts[0] / whole[0], amounts[2] / whole[2])]


def _without_active(inventory: Inventory, rows: list[list[str]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Heads and rows; only experts make the active parameters worth a column."""
    if inventory.num_active_parameters != inventory.num_parameters:
        return COSTS, rows
    column = COSTS.index("active")
    return COSTS[:column] + COSTS[column + 1 :], [row[:column] + row[column + 1 :] for row in rows]


def _ways(each: SublayerFigures) -> Row:
    module = each.path.rpartition(".")[2]
    form = f"{each.form}, adds the residual itself" if each.adds_residual else each.form
    return each.block, each.kind, (module, form, ", ".join(each.corrections) or NOTHING, each.removed_with_block)


def _grouped(rows: Iterable[Row], every_block: bool) -> list[list[str]]:
    """Rows with the blocks in front; runs of blocks with the same cells are one row.

    Example:
        >>> _grouped([(0, "mlp", ("7",)), (1, "mlp", ("7",)), (3, "mlp", ("7",))], every_block=False)
        [['0-1', 'mlp', '7'], ['3', 'mlp', '7']]
    """
    listed = list(rows)
    runs: list[tuple[int, int, list[str]]] = []
    for kind in KINDS:
        own = [row for row in listed if row[1] == kind]
        for cells, same in groupby(own, key=lambda row: row[2]):
            runs += [(first, last, [kind, *cells]) for first, last in _runs([row[0] for row in same], every_block)]
    runs.sort(key=lambda run: run[0])
    return [[str(first) if first == last else f"{first}-{last}", *cells] for first, last, cells in runs]


def _runs(blocks: Sequence[int], every_block: bool) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and not every_block and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs


def _notes(inventory: Inventory) -> Iterator[str]:
    yield "rest: embeddings, head and what stays of a block; KV bytes: cache of one token"
    yield "Any sublayer can go alone: lit_prune.load reads what is saved then."
    if shared := {each.num_shared_norm_parameters for each in inventory.sublayers} - {0}:
        listed = ", ".join(f"{each:,}" for each in sorted(shared))
        yield f"A norm that feeds both sublayers of a block ({listed} parameters) goes with the second of them."
    if any(each.removed_with_block != each.removed_alone for each in inventory.sublayers):
        yield "stock model: without that block an ordinary model is left, for any loader"
    found = {word for each in inventory.sublayers for word in each.corrections}
    for word in (each for each in WORDS if each in found):
        yield f"{word}: {WORDS[word]}"


def _short(number: int) -> str:
    """Three digits and a unit's prefix, a blank between them.

    Example:
        >>> _short(824415485952), _short(811_706_777_600), _short(12)
        ('824 G', '812 G', '12 ')
    """
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    value, prefix = float(number), prefixes.pop(0)
    while value >= 999.5 and prefixes:
        value, prefix = value / 1000, prefixes.pop(0)
    return f"{value:.3g} {prefix}"
