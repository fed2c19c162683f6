"""Where a model's weights are: on one device, or spread over several, the CPU and disk by accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.errors import ModelError

DeviceMap = str | Mapping[str, int | str]
"""As transformers takes it: `auto`, or a device, `cpu` or `disk` by module."""


def require_device(device: str | torch.device) -> None:
    """Refuse a device that PyTorch does not know or does not find here, before anything is read.

    Args:
        device: Such as `cuda:0`, `cpu` or `meta`.

    Raises:
        ModelError: It is none, with what there is.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    number = 0 if there is None else torch.accelerator.device_count()
    names = ["cpu", *(f"{there}:{index}" for index in range(number))]
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise ModelError(f"{device!r} is no device of PyTorch; here there are {', '.join(names)}") from None
    if asked.type in ("cpu", "meta") or (there is not None and asked.type == there.type and asked.index is None):
        return
    if str(asked) not in names:
        raise ModelError(f"PyTorch finds no device {asked} here, only {', '.join(names)}")


def device_map_of(device: str | torch.device | None, device_map: DeviceMap | None) -> dict[str, Any]:
    """What `from_pretrained` is told, so that weights go from disk straight to where they belong.

    Args:
        device: One device for all; None leaves it to the map, or to the CPU.
        device_map: For a model that no device holds.

    Raises:
        ModelError: Both are given.

    Example:
        >>> device_map_of("cuda:0", None)
        {'device_map': {'': device(type='cuda', index=0)}}
        >>> device_map_of("cpu", None)
        {}
    """
    if device_map is not None:
        if device is not None:
            raise ModelError(f"a device ({device}) and a device_map ({device_map}) were given; give one of them")
        return {"device_map": device_map if isinstance(device_map, str) else dict(device_map)}
    if device is None or torch.device(device).type == "cpu":
        return {}
    return {"device_map": {"": torch.device(device)}}


def is_spread(model: nn.Module) -> bool:
    """Whether the weights are on several devices, or partly in the CPU's memory or on disk."""
    placed = getattr(model, "hf_device_map", None) or {}
    return len(set(placed.values())) > 1


def values_of(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A parameter's or buffer's values, which accelerate may have put elsewhere and left on the meta device.

    Of one that is sharded over processes, all of them must ask.

    Args:
        model: That it is of.
        name: Its name in the model.
        tensor: It itself.
    """
    if not tensor.is_meta:
        return whole(tensor.detach())
    from accelerate.utils import align_module_device

    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module, execution_device="cpu"):
        values: Tensor = getattr(module, own)
        return values.detach().clone()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded over processes (a DTensor), of which all must ask then."""
    gather = getattr(tensor, "full_tensor", None)
    found: Tensor = tensor if gather is None else gather()
    return found


def bytes_held(model: nn.Module) -> int:
    """Bytes of a process's part of the weights, the same number in each: a shard where they are sharded, else all."""
    meshes = [(each.nbytes, getattr(each, "device_mesh", None)) for each in model.parameters()]
    return sum(nbytes if mesh is None else nbytes // int(mesh.size()) for nbytes, mesh in meshes)
