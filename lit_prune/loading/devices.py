"""Where a model's weights are: on one device, or spread over several, the CPU and disk by accelerate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lit_prune.errors import ModelError

DeviceMap = str | Mapping[str, int | str]
"""As transformers takes it: `auto`, or a device, `cpu` or `disk` by module."""

TRIAL = (512, 512)
WORTH_IT = 1.25


def require_device(device: str | torch.device) -> None:
    """Refuse with a ModelError a device that PyTorch does not know or does not find here, before anything is read."""
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

    That is one device for all of them, or devices by module, for a model that no device holds. Without both they go to
    the CPU; with both, a ModelError says to give one.

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


def exact_dtype(device: torch.device) -> torch.dtype:
    """What sums are kept in: float64, or float32 on Apple's GPUs, which have no float64.

    Example:
        >>> exact_dtype(torch.device("cpu")), exact_dtype(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    return torch.float32 if device.type == "mps" else torch.float64


def faster_on_cpu(dtype: torch.dtype) -> tuple[torch.dtype, float] | None:
    """In which of float32 and bfloat16 this CPU multiplies faster than in a data type, and how many times as fast.

    By a trial of a tenth of a second: bfloat16 is several times as fast with AMX or AVX-512 for it, and many times
    slower on other CPUs. None where the difference is less than a quarter.
    """
    seconds = {each: _seconds_of_a_product(each) for each in {dtype, torch.float32, torch.bfloat16}}
    fastest = min(seconds, key=lambda each: seconds[each])
    times = seconds[dtype] / seconds[fastest]
    return (fastest, times) if times > WORTH_IT else None


def fastest_dtype(device: str | torch.device | None = None) -> torch.dtype:
    """The type in which models run fast on a device: float32 on CPUs that multiply no faster in bfloat16, by a trial.

    Without a device it is a GPU where there is one, to which a trainer will bring the model.
    """
    there = torch.accelerator.is_available() if device is None else torch.device(device).type != "cpu"
    if there:
        return torch.bfloat16
    found = faster_on_cpu(torch.float32)
    return torch.float32 if found is None else found[0]


def _seconds_of_a_product(dtype: torch.dtype) -> float:
    states, weights = (torch.ones(TRIAL).to(dtype) for _ in range(2))
    found = []
    for _ in range(4):
        begin = time.perf_counter()
        states @ weights
        found.append(time.perf_counter() - begin)
    return min(found)


def is_spread(model: nn.Module) -> bool:
    """Whether the weights are on several devices, or partly in the CPU's memory or on disk."""
    placed = getattr(model, "hf_device_map", None) or {}
    return len(set(placed.values())) > 1


def values_of(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Values of a model's parameter or buffer, which accelerate may have put elsewhere and left on the meta device.

    Where the tensor is sharded over processes, all of them must ask.
    """
    if not tensor.is_meta:
        return whole(tensor.detach())
    from accelerate.utils import align_module_device

    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module, execution_device="cpu"):
        return cast(Tensor, getattr(module, own)).detach().clone()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded over processes (a DTensor), of which all must ask then."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else cast(Tensor, gather())


def with_tensors(
    model_class: Any, config: PreTrainedConfig, tensors: Mapping[str, Tensor], like: PreTrainedModel
) -> PreTrainedModel:
    """A model of this class and config on the CPU with these tensors, the dtype and generation config as of `like`."""
    from accelerate import init_empty_weights

    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        model = model_class._from_config(config, dtype=like.dtype)
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    model.generation_config = like.generation_config
    return cast(PreTrainedModel, model.eval())


def bytes_held(model: nn.Module) -> int:
    """Bytes of a process's part of the weights, the same number in all: a shard where they are sharded, else all."""
    meshes = [(parameter.nbytes, getattr(parameter, "device_mesh", None)) for parameter in model.parameters()]
    return sum(nbytes if mesh is None else nbytes // int(mesh.size()) for nbytes, mesh in meshes)
