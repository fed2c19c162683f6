"""Sublayers taken out for good: parameters freed, forgotten by the optimizers, recorded in the config.

And built anew where they were removed, for the weights of a checkpoint from before the removal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lit_prune.anatomy import Record, decoder_config, find_sublayers, language_model
from lit_prune.errors import ModelError
from lit_prune.plan import SublayerId
from lit_prune.surgery.config import record_removal, stock_config
from lit_prune.surgery.mute import put_stubs
from lit_prune.surgery.optimizers import forget_parameters
from lit_prune.surgery.sharded import is_sharded, release, reshard
from lit_prune.surgery.tombstones import leave_tombstones, set_tombstones_aside


def remove(model: nn.Module, ids: Iterable[SublayerId], optimizers: Iterable[Optimizer] = ()) -> int:
    """Take sublayers and their norms out of a model for good, in place; returns how many parameters that freed.

    The attention cache stays exact, adapters of what goes are gone too (and do not count), optimizers that hold the
    model's parameters keep the momentum of the rest. The model is on any device, meta included.

    Raises:
        PlanError: One of the sublayers is not in the model; nothing is removed then.
    """
    model = language_model(model)
    anatomy = find_sublayers(model)
    ids = tuple(ids)
    parts, freed = anatomy.parts(ids), anatomy.num_freed(ids)
    if not parts:
        return 0
    sharded = is_sharded(model)
    reshard(model)
    taken = put_stubs(model, parts)
    for parent, name, module in taken:
        leave_tombstones(getattr(parent, name), module)
        if sharded:
            set_tombstones_aside(getattr(parent, name))
    record_removal(model, find_sublayers(model))
    gone = [module for _, _, module in taken]
    kept = {id(parameter) for parameter in model.parameters()}
    dropped = [parameter for module in gone for parameter in module.parameters() if id(parameter) not in kept]
    for optimizer in optimizers:
        forget_parameters(optimizer, dropped)
    release(model, gone, dropped)
    return freed


def put_back(model: nn.Module, ids: Iterable[SublayerId]) -> None:
    """Build removed sublayers and their norms again, in place, as the dense model has them.

    The model has no adapters, and is not sharded. Its other weights stay as they are; those of the sublayers are drawn
    at random, until others are loaded. A ModelError says that whole blocks were closed up, so that nothing tells what
    they were.
    """
    root = language_model(model)
    if Record.of(decoder_config(root)).blocks is not None:
        raise ModelError("whole blocks are out of the stack, and cannot be built again; start from the dense model")
    config = stock_config(root)
    replace(Record.of(decoder_config(root)), removed=(), biases={}).write(config.get_text_config(decoder=True))
    with torch.device("meta"):
        dense = type(root)(config)
    anatomy, gone = find_sublayers(dense), set(find_sublayers(root).removed)
    staying = {part.path for part in anatomy.parts(gone - set(ids))}
    for part in anatomy.parts(gone):
        if part.path not in staying:
            root.set_submodule(part.path, _filled(root, part.path, dense.get_submodule(part.path)))
    anatomy = find_sublayers(root)
    # Without any attention there was nothing to cache.
    if any(sublayer.kind == "attention" for sublayer in anatomy.ids):
        for own in (decoder_config(root), getattr(root, "generation_config", None)):
            if own is not None and getattr(own, "use_cache", True) is False:
                own.use_cache = True
    record_removal(root, anatomy)


def removed_sublayers(model: nn.Module) -> tuple[SublayerId, ...]:
    """The sublayers that a model has lost, by block."""
    return find_sublayers(model).removed


def require_recorded(model: nn.Module) -> None:
    """Refuse with a ModelError a model that is not as its config says, which would load as another one.

    It has muted sublayers, or shares its config with a model that has lost others.
    """
    gone, recorded = set(removed_sublayers(model)), set(Record.of(decoder_config(model)).removed)
    if muted := _names(gone - recorded):
        raise ModelError(f"{muted} are only muted; remove them, or save outside of `mute`")
    if kept := _names(recorded - gone):
        raise ModelError(
            f"the model's config says that {kept} are gone, and the model has them: it shares the config with a pruned "
            "one. Prune a model of its own config: `copy.deepcopy(config)`"
        )


def _names(ids: Iterable[SublayerId]) -> str:
    return ", ".join(sorted(map(str, ids)))


def _filled(root: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """A module with values: transformers' own first ones, for tables that no checkpoint has too."""
    like = next(root.parameters())
    module = module.to_empty(device=like.device).to(like.dtype).train(root.training)
    around = (holder for name, holder in root.named_modules() if not name or path.startswith(f"{name}."))
    *_, owner = (holder for holder in around if isinstance(holder, PreTrainedModel))
    with torch.no_grad(), torch.random.fork_rng():
        for part in module.modules():
            owner._init_weights(part)  # type: ignore[no-untyped-call]
    return module
