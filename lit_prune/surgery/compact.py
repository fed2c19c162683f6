"""Blocks that have lost both sublayers, taken out of the stack: what is left is a stock model with fewer blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_prune.anatomy import (
    BLOCK_LISTS,
    BLOCK_NUMBERS,
    Anatomy,
    Record,
    SublayerStub,
    decoder_config,
    find_sublayers,
    language_model,
)
from lit_prune.surgery.config import record_removal, set_skips, stock_config
from lit_prune.surgery.mute import evaluating, mute
from lit_prune.surgery.outputs import first_tensor, hidden_states, run_few_tokens

PLAIN_TYPES = (bool, int, float, str, type(None), tuple)
PASSING = ("training", "gradient_checkpointing")


@contextmanager
def compacted(model: nn.Module) -> Iterator[None]:
    """Do what `compact` does for the length of a `with` block."""
    undo = compact(model)
    try:
        yield
    finally:
        undo()


def compact(model: nn.Module) -> Callable[[], None]:
    """Take blocks without sublayers out of the list of blocks, in place, where that gives a stock model.

    Addresses stay those of the original model. A block that does something of its own to the stream stays, and so does
    one with parameters beside its sublayers. Where the config could not build the shorter stack (a pattern that
    depends on the position, such as every fourth block with experts), nothing is done, and the blocks pass through.
    The function that is returned puts the blocks back.
    """
    root = language_model(model)
    anatomy, config = find_sublayers(root), decoder_config(root)
    positions = _staying(root, anatomy)
    if len(positions) == len(anatomy.blocks):
        return lambda: None
    blocks, entries = anatomy.block_list(root), dict(vars(config))

    def undo() -> None:
        _place(root, anatomy.blocks_path, blocks)
        vars(config).clear()
        vars(config).update(entries)

    kept = nn.ModuleList([blocks[position] for position in positions]).train(blocks.training)
    _place(root, anatomy.blocks_path, kept)
    lists = _shorten_config(config, anatomy, positions)
    record_removal(root, find_sublayers(root))
    if _is_stock(root, anatomy.blocks_path, lists):
        return undo
    undo()
    return lambda: None


def closable_blocks(model: nn.Module) -> tuple[int, ...]:
    """Find the numbers of the blocks that could go alone and leave a stock model, by trying `compact` without each.

    Neighbours that are the same in everything leave the same stack, and are tried once. The model, on any device, is
    left as it was. Where a block of it has lost one sublayer, no other block can go and leave a stock model.
    """
    root = language_model(model)
    anatomy = find_sublayers(root)
    blocks = list(anatomy.block_list(root))
    with mute(root, anatomy.ids, anatomy=anatomy):
        identities = _passing(root, blocks) if anatomy.passes_through else set()
    passing = [number for number, block in zip(anatomy.blocks, blocks, strict=True) if block in identities]
    closable: list[int] = []
    for _, alike in groupby(passing, partial(_signature, root, anatomy)):
        numbers = list(alike)
        closable += numbers if _closes(root, anatomy, numbers[0]) else []
    return tuple(closable)


def _staying(model: Any, anatomy: Anatomy) -> list[int]:
    """Positions of blocks with sublayers or a work of their own; of all blocks where no stock model can be left."""
    positions = list(range(len(anatomy.blocks)))
    full = {sublayer.block for sublayer in anatomy.ids}
    empty = [position for position in positions if anatomy.blocks[position] not in full]
    # With a bias that stock models lack it would be none, and nothing would stop a loader that drops the bias.
    if Record.of(decoder_config(model)).biases or not anatomy.passes_through or not full or not empty:
        return positions
    blocks = anatomy.block_list(model)
    going = _passing(model, [blocks[position] for position in empty])
    return [position for position in positions if blocks[position] not in going]


def _closes(model: nn.Module, anatomy: Anatomy, block: int) -> bool:
    going = [sublayer for sublayer in anatomy.ids if sublayer.block == block]
    present = Counter(sublayer.block for sublayer in anatomy.ids if sublayer.block != block)
    if 1 in present.values():
        return False
    with mute(model, going, anatomy=anatomy), compacted(model):
        return set(find_sublayers(model).blocks) == set(present)


def _signature(model: nn.Module, anatomy: Anatomy, block: int) -> Any:
    """All that tells a block from another, but for its number."""
    position, length = anatomy.position(block), len(anatomy.blocks)
    own = {
        name: {key: value for key, value in _traits(module).items() if key not in BLOCK_NUMBERS}
        for name, module in anatomy.block_list(model)[position].named_modules()
    }
    entries = {
        name: position in value if name in BLOCK_LISTS else value[position]
        for name, value in vars(decoder_config(model)).items()
        if isinstance(value, list | tuple) and (name in BLOCK_LISTS or len(value) == length)
    }
    return own, entries


def _place(model: nn.Module, path: str, blocks: nn.ModuleList) -> None:
    """Put a list in the place of the blocks; its modules learn their positions, where attention has its cache."""
    model.set_submodule(path, blocks)
    for position, block in enumerate(blocks):
        for module in block.modules():
            for name in BLOCK_NUMBERS:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, position)


def _shorten_config(config: Any, anatomy: Anatomy, positions: list[int]) -> dict[str, list[Any]]:
    """Make a config that of the blocks at these positions; returns the entries with a list for the blocks."""
    set_skips(config, {})
    config.num_hidden_layers = len(positions)
    lists: dict[str, list[Any]] = {}
    for name, value in vars(config).items():
        if name in BLOCK_LISTS and isinstance(value, list):
            lists[name] = [positions.index(position) for position in value if position in positions]
        elif "layer" in name and isinstance(value, list | tuple) and len(value) == len(anatomy.blocks):
            lists[name] = [value[position] for position in positions]
    for name, entry in lists.items():
        setattr(config, name, entry)
    blocks = tuple(anatomy.blocks[position] for position in positions)
    replace(Record.of(config), blocks=blocks, num_blocks=anatomy.num_blocks).write(config)
    return lists


def _is_stock(model: PreTrainedModel, path: str, lists: dict[str, list[Any]]) -> bool:
    """Whether the config builds just these blocks: same classes, weights and settings, but for what was removed."""
    config = stock_config(model)
    try:
        config = type(config).from_dict(config.to_dict())
        with torch.device("meta"):
            fresh = type(model)(config)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError):
        return False
    rebuilt = config.get_text_config(decoder=True)
    if any(list(getattr(rebuilt, name)) != entry for name, entry in lists.items()):
        return False  # an entry that the config works out anew from another
    own, built = (_unwrapped(root.get_submodule(path)) for root in (model, fresh))
    gone = [name for name, module in own.items() if isinstance(module, SublayerStub | nn.Identity)]
    inside = tuple(f"{name}." for name in gone)
    expected = {name: module for name, module in built.items() if not name.startswith(inside)}
    return set(own) == set(expected) and all(
        name in gone or _traits(own[name]) == _traits(expected[name]) for name in own
    )


def _unwrapped(blocks: nn.Module) -> dict[str, nn.Module]:
    """Modules by name, as they are without peft's layers around some of them."""
    modules = dict(blocks.named_modules())
    around = tuple(f"{name}." for name, module in modules.items() if hasattr(module, "get_base_layer"))
    inside = tuple(f"{name}base_layer" for name in around)
    return {
        name.replace(".base_layer", ""): module
        for name, module in modules.items()
        if name.startswith(inside) or not (name.startswith(around) or f"{name}." in around)
    }


def _traits(module: nn.Module) -> dict[str, Any]:
    """What decides how a module computes: its class, settings and the shapes of its own weights."""
    settings = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, PLAIN_TYPES) and name not in PASSING and not name.startswith("_")
    }
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters(recurse=False)}
    return {"class": type(module), **settings, **shapes}


def _passing(model: Any, blocks: Sequence[nn.Module]) -> set[nn.Module]:
    """Which of a model's blocks without attention and FFN are identities for the residual stream, to the last bit.

    A block may scale the stream, or hold parameters of its own beside it: it is none then, though nothing adds to it.
    The model runs on a few tokens; on the meta device, where there are no values, only parameters count.
    """
    bare = {block for block in blocks if next(block.parameters(), None) is None}
    if model.device.type == "meta" or not bare:
        return bare
    same: dict[nn.Module, bool] = {}

    def compare(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        before, after = hidden_states(args, kwargs), first_tensor(output)
        same[block] = torch.equal(after, before.to(after))

    with ExitStack() as hooks, evaluating(model):
        for block in blocks:
            hooks.enter_context(block.register_forward_pre_hook(_widen, with_kwargs=True))
            hooks.enter_context(block.register_forward_hook(compare, with_kwargs=True))
        run_few_tokens(model)
    return {block for block in bare if same[block]}


def _widen(_: nn.Module, args: Any, kwargs: Any) -> Any:
    """Other numbers than a few embeddings hold, so that a limit would show as well."""
    hidden = hidden_states(args, kwargs)
    wide = hidden + 8 * torch.linspace(-1, 1, hidden.shape[-1]).to(hidden)
    return ((wide, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": wide})
