"""What in a module is the model's own, and what is of adapters around its layers, by whatever method of peft's."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

BASE = "base_layer"
"""Where peft keeps the layer that it has adapted."""
COPIES, COPIED = "modules_to_save", "original_module"
"""Where it keeps whole copies that are trained, and beside them the one that they are of."""


def is_adapted(module: nn.Module) -> bool:
    """Whether something of peft's stands around layers of a module."""
    return bool(_adapted(module))


def own_parameters(module: nn.Module, *, shared: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's parameters with their names, those of adapters left out.

    Args:
        module: Perhaps with adapters in it.
        shared: Whether a parameter that has several names comes with each of them.
    """
    adapted = _adapted(module)
    for name, parameter in module.named_parameters(remove_duplicate=not shared):
        if _is_own(name, adapted):
            yield name, parameter


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's parameters and saved buffers by the names that they have without adapters and torch's masks."""
    adapted = _adapted(module)
    for path, each in module.named_modules(remove_duplicate=False):
        kept = {name: each._buffers[name] for name in each._buffers if name not in each._non_persistent_buffers_set}
        for leaf, tensor in {**each._parameters, **kept}.items():
            name = f"{path}.{leaf}" if path else leaf
            masks = leaf.endswith("_mask") and f"{leaf.removesuffix('_mask')}_orig" in each._parameters
            if tensor is not None and not masks and _is_own(name, adapted):
                plain = name.replace(f"{BASE}.", "").replace(f"{COPIED}.", "")
                yield plain.removesuffix("_orig"), tensor


def _adapted(module: nn.Module) -> list[str]:
    return [
        f"{path}." if path else ""
        for path, each in module.named_modules()
        if BASE in each._modules or COPIES in each._modules
    ]


def _is_own(name: str, adapted: list[str]) -> bool:
    inside = [path for path in adapted if name.startswith(path)]
    return all(name.startswith((f"{path}{BASE}.", f"{path}{COPIED}.")) for path in inside)
