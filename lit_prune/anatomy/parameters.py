"""Which parameters of a module are the model's own, and how many: adapters around its layers do not count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

BASE = "base_layer"
"""Where peft keeps the layer that it has adapted."""
COPIES, COPIED = "modules_to_save", "original_module"
"""Where peft keeps whole copies that are trained, and beside them the module that they are copies of."""


@dataclass(frozen=True)
class SharedParameter:
    """A parameter in several places, such as one FFN of all blocks: it is freed when the last place is gone."""

    names: tuple[str, ...]
    num_parameters: int

    def surplus(self, paths: Iterable[str]) -> int:
        """How many numbers the parts at these paths count too often: they go together, and free them once at most."""
        inside = [{name for name in self.names if name.startswith(f"{path}.")} for path in paths]
        holding = sum(map(bool, inside))
        freed = len(set().union(*inside)) == len(self.names)
        return self.num_parameters * (holding - freed) if holding else 0


def is_adapted(module: nn.Module) -> bool:
    """Whether peft has put something around layers of a module."""
    return bool(_adapted(module))


def own_parameters(module: nn.Module, *, shared: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
    """Go through a module's parameters with their names, those of adapters left out; `shared` ones with every name."""
    adapted = _adapted(module)
    for name, parameter in module.named_parameters(remove_duplicate=not shared):
        if _is_own(name, adapted):
            yield name, parameter


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Go through parameters and saved buffers by the names that they have without adapters and torch's masks."""
    adapted = _adapted(module)
    for path, child in module.named_modules(remove_duplicate=False):
        kept = {name: child._buffers[name] for name in child._buffers if name not in child._non_persistent_buffers_set}
        for leaf, tensor in {**child._parameters, **kept}.items():
            name = f"{path}.{leaf}" if path else leaf
            masks = leaf.endswith("_mask") and f"{leaf.removesuffix('_mask')}_orig" in child._parameters
            if tensor is not None and not masks and _is_own(name, adapted):
                plain = name.replace(f"{BASE}.", "").replace(f"{COPIED}.", "")
                yield plain.removesuffix("_orig"), tensor


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Count the parameters of modules, each tensor once; those of adapters are not the model's and do not count."""
    found = {
        _place(parameter): _num_numbers(parameter) for module in modules for _, parameter in own_parameters(module)
    }
    return sum(found.values())


def shared_parameters(model: nn.Module) -> tuple[int, tuple[SharedParameter, ...]]:
    """Count a model's parameters as `count_parameters` does, and find those of them that have several names."""
    sizes: dict[Any, int] = {}
    names: dict[Any, list[str]] = {}
    for name, parameter in own_parameters(model, shared=True):
        place = _place(parameter)
        sizes[place] = _num_numbers(parameter)
        names.setdefault(place, []).append(name)
    shared = (SharedParameter(tuple(names[place]), sizes[place]) for place in names if len(names[place]) > 1)
    return sum(sizes.values()), tuple(shared)


def _adapted(module: nn.Module) -> list[str]:
    return [
        f"{path}." if path else ""
        for path, child in module.named_modules()
        if BASE in child._modules or COPIES in child._modules
    ]


def _is_own(name: str, adapted: list[str]) -> bool:
    inside = [path for path in adapted if name.startswith(path)]
    return all(name.startswith((f"{path}{BASE}.", f"{path}{COPIED}.")) for path in inside)


def _place(parameter: nn.Parameter) -> Any:
    """What tells a parameter from others: where its numbers are, as several parameters may be the same numbers."""
    plain = type(parameter) is nn.Parameter and not parameter.is_meta  # others are packed or sharded
    return (parameter.data_ptr() or id(parameter), parameter.shape) if plain else id(parameter)


def _num_numbers(parameter: nn.Parameter) -> int:
    # bitsandbytes packs two numbers of 4 bits into a byte.
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)
