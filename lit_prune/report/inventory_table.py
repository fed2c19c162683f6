"""An inventory of a model's sublayers on the screen: what each costs, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from lit_prune.anatomy import LINEAR, POST_NORM, SCALE
from lit_prune.costs import Inventory, SublayerEntry
from lit_prune.plan import KINDS, SublayerId
from lit_prune.report.pieces import Screen, Table

COSTS = ("blocks", "sublayer", "parameters", "active", "share", "FLOP", "of all", "KV bytes")
WAYS = ("blocks", "sublayer", "module", "residual form", "folds", "whole block")
NOTHING = "-"
WORDS = {
    SCALE: "a factor can make up for some of the loss, folded into weights behind it",
    LINEAR: "a matrix can make up for some of the loss, folded into weights before it",
}
Row = tuple[int, str, tuple[str, ...]]
"""Block, kind, and the cells behind them."""


def print_inventory(inventory: Inventory, *, every_block: bool = False) -> None:
    """Show an inventory on the screen; blocks that are the same as their neighbours share rows unless `every_block`."""
    screen = Screen(wide=True)
    screen.say(f"{inventory.model} ({inventory.architecture})", "bold")
    for fact in _facts(inventory):
        screen.say(fact)
    costs = [*_grouped(_costs(inventory), every_block), *_sums(inventory)]
    screen.show(Table.of(COSTS, costs, words=COSTS[:2]).filled)
    screen.show(Table.of(WAYS, _grouped(map(_ways, inventory.sublayers), every_block), words=WAYS))
    for note in _notes(inventory):
        screen.say(note)


def _facts(inventory: Inventory) -> Iterator[str]:
    here = "" if inventory.num_blocks_in_list == inventory.num_blocks else f"{inventory.num_blocks_in_list} of "
    yield f"{here}{inventory.num_blocks} blocks in {inventory.blocks_path}, hidden size {inventory.hidden_size:,}"
    per_token = f"; a token goes through {inventory.num_active_parameters:,}" if _has_experts(inventory) else ""
    weights = f"{_short(inventory.weight_bytes)}B in {inventory.dtype}"
    yield f"{inventory.num_parameters:,} parameters, {weights}{per_token}"
    most = f" (the model is made for {inventory.max_context:,})" if inventory.max_context else ""
    yield f"A token after {inventory.context:,} others{most}: {_short(inventory.flops)}FLOP"
    yield f"KV cache of a token: {inventory.kv_bytes:,} bytes in {inventory.dtype}"
    if inventory.removed:
        yield f"Gone: {', '.join(inventory.removed)}"


def _has_experts(inventory: Inventory) -> bool:
    """Whether active parameters are worth a column."""
    return inventory.num_active_parameters != inventory.num_parameters


def _costs(inventory: Inventory) -> list[Row]:
    rows: list[Row] = [(found.block, found.kind, _cells(_amounts(found), inventory)) for found in inventory.sublayers]
    gone = ("gone", NOTHING if _has_experts(inventory) else "", *[NOTHING] * 4)
    rows += [(sublayer.block, str(sublayer.kind), gone) for sublayer in map(SublayerId.parse, inventory.removed)]
    return sorted(rows, key=lambda row: row[0])


def _amounts(found: Inventory | SublayerEntry) -> tuple[int, ...]:
    return found.num_parameters, found.num_active_parameters, found.flops, found.kv_bytes


def _cells(amounts: Sequence[int], inventory: Inventory) -> tuple[str, ...]:
    parameters, active, flops, kv_bytes = amounts
    share, flops_share = _percent(parameters / inventory.num_parameters), _percent(flops / inventory.flops)
    shown = f"{active:,}" if _has_experts(inventory) else ""
    return f"{parameters:,}", shown, share, _short(flops), flops_share, f"{kv_bytes:,}"


def _percent(share: float) -> str:
    return "100%" if share == 1 else f"{share:.2%}"


def _sums(inventory: Inventory) -> Iterator[list[str]]:
    """One row for each kind, one for what is no sublayer, one for the whole."""
    rest = whole = _amounts(inventory)
    for kind in KINDS:
        own = [_amounts(sublayer) for sublayer in inventory.sublayers if sublayer.kind == kind]
        sums = [sum(column) for column in zip((0,) * len(whole), *own, strict=True)]
        rest = tuple(left - amount for left, amount in zip(rest, sums, strict=True))
        yield [f"all {len(own)}", kind, *_cells(sums, inventory)]
    yield ["rest", "", *_cells(rest, inventory)]
    yield ["model", "", *_cells(whole, inventory)]


def _ways(sublayer: SublayerEntry) -> Row:
    form = f"{sublayer.form}, adds the residual itself" if sublayer.adds_residual else sublayer.form
    folds = ", ".join(sublayer.corrections) or NOTHING
    return sublayer.block, sublayer.kind, (sublayer.path.split(".")[-1], form, folds, sublayer.removed_with_block)


def _grouped(rows: Iterable[Row], every_block: bool) -> list[list[str]]:
    """Rows with the blocks in front; runs of blocks with the same cells are one row.

    Example:
        >>> _grouped([(0, "mlp", ("7",)), (1, "mlp", ("7",)), (3, "mlp", ("7",))], every_block=False)
        [['0-1', 'mlp', '7'], ['3', 'mlp', '7']]
    """
    listed = list(rows)
    runs: list[tuple[int, int, list[str]]] = []
    for kind in KINDS:
        own = enumerate(row for row in listed if row[1] == kind)
        # Of neighbours, block and position differ by the same.
        for (cells, _), same in groupby(own, lambda row: (row[1][2], row[1][0] - (0 if every_block else row[0]))):
            blocks = [block for _, (block, *_) in same]
            runs.append((blocks[0], blocks[-1], [kind, *cells]))
    runs.sort(key=lambda run: run[0])
    return [[str(first) if first == last else f"{first}-{last}", *cells] for first, last, cells in runs]


def _notes(inventory: Inventory) -> Iterator[str]:
    yield "rest: embeddings, head and what stays of a block; KV bytes: cache of one token"
    yield "Any sublayer can go alone: lit_prune.load reads what is saved then."
    if shared := {sublayer.num_shared_norm_parameters for sublayer in inventory.sublayers} - {0}:
        listed = ", ".join(f"{size:,}" for size in sorted(shared))
        yield f"A norm that feeds both sublayers of a block ({listed} parameters) goes with the second of them."
    if any(sublayer.removed_with_block != sublayer.removed_alone for sublayer in inventory.sublayers):
        yield "stock model: without that block an ordinary model is left, for any loader"
    found = {word for sublayer in inventory.sublayers for word in sublayer.corrections}
    yield from (f"{word}: {meaning}" for word, meaning in WORDS.items() if word in found)
    if all(sublayer.form != POST_NORM for sublayer in inventory.sublayers):
        yield "refit: output projections that stay can be solved for anew, for whatever goes"


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
