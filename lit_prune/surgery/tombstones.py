"""What a removed module leaves in a state dict: an empty tensor under the name of each tensor that it had.

A loader that builds the removed sublayers all the same finds tensors of another size, and stops; without them it would
take the weights for forgotten and draw random ones. Here they are read and written like any other tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_prune.anatomy import own_tensors
from lit_prune.surgery.config import remember

GRAVES = "_lit_prune_graves"
"""Where a stub keeps the names of the modules with its tombstones."""
ASIDE = "_lit_prune_aside"
"""Where a stub keeps the tombstones that its state dict must not have."""


def leave_tombstones(stub: nn.Module, gone: nn.Module) -> None:
    """Give what stands in the place of a removed module an empty tensor for each of its own; adapters leave nothing.

    The modules that hold them can be reached by name, as loaders do, and are not among the stub's children: to peft,
    optimizers and whoever walks through a model they do not exist.
    """
    grave = nn.Module()
    for path, tensor in own_tensors(gone):
        *parents, leaf = path.split(".")
        place = grave
        for name in parents:
            place = cast(nn.Module, place._modules.setdefault(name, nn.Module()))
        # Only the last dimension is empty: transformers splits and merges experts along the others as it saves.
        place.register_buffer(leaf, torch.empty(*tensor.shape[:-1], 0, dtype=tensor.dtype, device="cpu"))
    for name, buffer in grave.named_buffers(recurse=False):
        stub.register_buffer(name, buffer)
    # No children: an attribute of the object is not looked for among them.
    vars(stub).update(dict(grave.named_children()), **{GRAVES: tuple(grave._modules)})
    stub._register_state_dict_hook(_write)  # type: ignore[no-untyped-call]
    stub.register_load_state_dict_pre_hook(_read)  # type: ignore[no-untyped-call]


def tombstones(model: nn.Module) -> dict[str, Tensor]:
    """The tombstones of a model by their names in its state dict, those that were set aside too."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if GRAVES in vars(module):
            left_out = module._non_persistent_buffers_set
            own = {name: buffer for name, buffer in module.named_buffers(recurse=False) if name not in left_out}
            every = own | _buried(module) | vars(module).get(ASIDE, {})
            found |= {f"{path}.{name}" if path else name: buffer for name, buffer in every.items()}
    return found


def set_tombstones_aside(model: nn.Module) -> None:
    """Take the tombstones of a model or stub out of its state dict for good.

    FSDP2 and distributed checkpoints look for a module behind every name. `save_pretrained` puts the tombstones into
    what it writes.
    """
    for stub in model.modules():
        if GRAVES in vars(stub):
            own = dict(stub.named_buffers(recurse=False))
            vars(stub).update({ASIDE: {**vars(stub).get(ASIDE, {}), **own, **_buried(stub)}, GRAVES: ()})
            stub._buffers.clear()


def are_aside(model: nn.Module) -> bool:
    """Whether a model's state dict has no tombstones, and should have some where it is saved."""
    return any(ASIDE in vars(module) for module in model.modules())


@contextmanager
def without_tombstones(model: nn.Module) -> Iterator[None]:
    """Leave tombstones out of the state dict in a `with` block: for formats that say what is gone in their own way."""
    stubs = [module for module in model.modules() if GRAVES in vars(module)]
    put_back = remember(map(vars, stubs), [GRAVES, "_non_persistent_buffers_set"])
    for stub in stubs:
        vars(stub).update({GRAVES: (), "_non_persistent_buffers_set": set(stub._buffers)})
    try:
        yield
    finally:
        put_back()


def _buried(stub: nn.Module) -> dict[str, Tensor]:
    graves = ((name, vars(stub)[name]) for name in vars(stub)[GRAVES])
    return {f"{name}.{path}": buffer for name, grave in graves for path, buffer in grave.named_buffers()}


# Functions of the module, which copies and pickles of a model take along.
def _write(stub: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    state.update({f"{prefix}{name}": buffer for name, buffer in _buried(stub).items()})


def _read(stub: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take the tombstones out of what is loaded; whatever is not empty is left for torch to complain about."""
    for name in _buried(stub):
        if f"{prefix}{name}" in state and not state[f"{prefix}{name}"].numel():
            del state[f"{prefix}{name}"]
    for name, buffer in stub.named_buffers(recurse=False):
        state.setdefault(f"{prefix}{name}", buffer)  # saved before there were tombstones
