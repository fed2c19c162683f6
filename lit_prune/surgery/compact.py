"""Blocks that have lost both sublayers, taken out of the stack: what is left is a stock model with fewer blocks."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from lit_prune.surgery.config import record_removal, stock_config
from lit_prune.surgery.mute import mute
from lit_prune.surgery.passing import passing

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

    Args:
        model: A causal language model, perhaps pruned.

    Returns:
        A function that puts them back.
    """
    root = language_model(model)
    anatomy = find_sublayers(root)
    full = {each.id.block for each in anatomy.sublayers}
    empty = [number for number, block in enumerate(anatomy.blocks) if block not in full]
    # With a bias that stock models lack it would be none, and nothing would stop a loader that drops the bias.
    if Record.of(decoder_config(root)).biases or not anatomy.passes_through:
        return lambda: None
    if not full or not empty:
        return lambda: None
    blocks: Any = root.get_submodule(anatomy.blocks_path)
    identities = passing(root, [blocks[each] for each in empty])
    going = {each for each, passes in zip(empty, identities, strict=True) if passes}
    if not going:
        return lambda: None
    positions = [number for number in range(len(blocks)) if number not in going]
    change = _Change(root, anatomy, positions)
    change.make()
    if not change.is_stock():
        change.undo()
        return lambda: None
    return change.undo


def closable_blocks(model: nn.Module) -> tuple[int, ...]:
    """The blocks of which each could go alone and leave a stock model, by trying `compact` without it.

    Neighbours that are the same in everything leave the same stack, and are tried once. The model is left as it was.

    Args:
        model: A causal language model on any device, perhaps pruned: where a block has lost one sublayer, no other
            block can go and leave a stock model.
    """
    root = language_model(model)
    anatomy = find_sublayers(root)
    blocks: Any = root.get_submodule(anatomy.blocks_path)
    with mute(root, [each.id for each in anatomy.sublayers], anatomy=anatomy):
        identities = passing(root, list(blocks)) if anatomy.passes_through else [False] * len(blocks)
    closable, last, answer = [], None, False
    for block in (each for each, passes in zip(anatomy.blocks, identities, strict=True) if passes):
        signature = _signature(root, anatomy, block)
        if signature != last:
            last, answer = signature, _closes(root, anatomy, block)
        closable += [block] if answer else []
    return tuple(closable)


def _closes(model: nn.Module, anatomy: Anatomy, block: int) -> bool:
    going = [each.id for each in anatomy.sublayers if each.id.block == block]
    present = Counter(each.id.block for each in anatomy.sublayers if each.id.block != block)
    if 1 in present.values():
        return False
    with mute(model, going, anatomy=anatomy), compacted(model):
        return set(find_sublayers(model).blocks) == set(present)


def _signature(model: nn.Module, anatomy: Anatomy, block: int) -> Any:
    """All that tells a block from another, but for its number."""
    position, length = anatomy.position(block), len(anatomy.blocks)
    modules = dict(model.get_submodule(f"{anatomy.blocks_path}.{position}").named_modules())
    traits = {name: _traits(module) for name, module in modules.items()}
    own = {name: {key: each[key] for key in each if key not in BLOCK_NUMBERS} for name, each in traits.items()}
    lists = {name: value for name, value in vars(decoder_config(model)).items() if isinstance(value, list | tuple)}
    entries = {
        name: position in value if name in BLOCK_LISTS else value[position]
        for name, value in lists.items()
        if name in BLOCK_LISTS or len(value) == length
    }
    return own, entries


class _Change:
    """The shorter list of blocks, their numbers and the config that fits them; can be undone."""

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy, positions: list[int]) -> None:
        self.model = model
        self.anatomy = anatomy
        self.positions = positions
        self.parent_path, _, self.name = anatomy.blocks_path.rpartition(".")
        self.blocks: Any = model.get_submodule(anatomy.blocks_path)
        self.config = decoder_config(model)
        self.before = copy.copy(self.config.__dict__)
        self.lists: dict[str, list[Any]] = {}

    def make(self) -> None:
        kept = nn.ModuleList([self.blocks[position] for position in self.positions])
        setattr(self.model.get_submodule(self.parent_path), self.name, kept.train(self.blocks.training))
        _number(kept)
        self._shorten_config()
        record_removal(self.model, find_sublayers(self.model))

    def undo(self) -> None:
        setattr(self.model.get_submodule(self.parent_path), self.name, self.blocks)
        _number(self.blocks)
        self.config.__dict__.clear()
        self.config.__dict__.update(self.before)

    def _shorten_config(self) -> None:
        config, length = self.config, len(self.blocks)
        config.per_layer_config = None
        config.num_hidden_layers = len(self.positions)
        for name, value in list(vars(config).items()):
            if name in BLOCK_LISTS and isinstance(value, list):
                self.lists[name] = [self.positions.index(each) for each in value if each in self.positions]
            elif "layer" in name and isinstance(value, list | tuple) and len(value) == length:
                self.lists[name] = [value[position] for position in self.positions]
        for name, value in self.lists.items():
            setattr(config, name, value)
        blocks = tuple(self.anatomy.blocks[position] for position in self.positions)
        replace(Record.of(config), blocks=blocks, num_blocks=self.anatomy.num_blocks).write(config)

    def is_stock(self) -> bool:
        """Whether the config builds just these blocks: same classes, weights and settings, but for what was removed."""
        config = stock_config(self.model)
        try:
            config = type(config).from_dict(config.to_dict())
            with torch.device("meta"):
                fresh = type(self.model)(config)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError):
            return False
        rebuilt = config.get_text_config(decoder=True)
        if any(list(getattr(rebuilt, name)) != value for name, value in self.lists.items()):
            return False  # an entry that the config works out anew from another
        path = self.anatomy.blocks_path
        own, built = (_unwrapped(each.get_submodule(path)) for each in (self.model, fresh))
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


def _number(blocks: nn.ModuleList) -> None:
    """Tell the modules of every block its position, which is where attention keeps its cache."""
    for position, block in enumerate(blocks):
        for module in block.modules():
            for name in BLOCK_NUMBERS:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, position)


def _traits(module: nn.Module) -> dict[str, Any]:
    """What decides how a module computes: its class, settings and the shapes of its own weights."""
    settings = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, PLAIN_TYPES) and name not in PASSING and not name.startswith("_")
    }
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters(recurse=False)}
    return {"class": type(module), **settings, **shapes}
