"""Weights that FSDP2 (`torch.distributed.fsdp.fully_shard`) shards over processes, while parts of a model go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lit_prune.errors import ModelError

HOOKS = ("_module_to_pre_save_state_dict_hook_handle", "_module_to_pre_load_state_dict_hook_handle")
"""Where a group of sharded weights keeps handles by module, and so the modules."""


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds but a shard of some weights, and all of them must run the model together."""
    return next(_sharded_modules(model), None) is not None


def reshard(model: nn.Module) -> None:
    """Free the whole weights that a pass has left behind, so that modules hold the shards that optimizers know."""
    for module in _sharded_modules(model):
        module.reshard()


def release(model: nn.Module, gone: Sequence[nn.Module], parameters: Iterable[nn.Parameter]) -> None:
    """Make FSDP2 forget modules that are gone, and their parameters, which it would gather and keep for ever."""
    dropped = set(map(id, parameters))
    parts = {part for module in gone for part in module.modules()}
    left_alone = {id(_state(part)) for module in gone for part in _sharded_modules(module)}
    for module in _sharded_modules(model):
        state = _state(module)
        for group in state._fsdp_param_groups:
            group.fsdp_params = [weight for weight in group.fsdp_params if id(weight.sharded_param) not in dropped]
            for handles in (getattr(group, name, {}) for name in HOOKS):
                for part in parts & handles.keys():
                    handles.pop(part).remove()
        state._fsdp_param_groups = [group for group in state._fsdp_param_groups if group.fsdp_params]
        states = state._state_ctx.all_states
        states[:] = [other for other in states if id(other) not in left_alone]


def _sharded_modules(model: nn.Module) -> Iterator[Any]:
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    yield from (module for module in model.modules() if isinstance(module, FSDPModule))


def _state(module: Any) -> Any:
    state = module._get_fsdp_state()
    if not hasattr(state, "_fsdp_param_groups"):
        raise ModelError(
            f"torch {torch.__version__} keeps sharded weights where lit-prune does not know how to free them; "
            "sublayers of sharded models can be removed with torch 2.13"
        )
    return state
