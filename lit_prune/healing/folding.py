"""Corrections folded into weights that stay: the graph is the same, and nothing is computed at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lit_prune.errors import ModelError


@torch.no_grad()
def scale_output(module: nn.Module, factor: float | Tensor) -> None:
    """Multiply all that a linear layer or a norm puts out, adapters on it included; of a norm by factors [out] too.

    Raises:
        ModelError: It is a norm whose weight does not scale its output; nothing is changed then.
    """
    has_adapters = hasattr(module, "base_layer")
    if has_adapters and (not hasattr(module, "lora_B") or getattr(module, "lora_magnitude_vector", None)):
        raise ModelError(f"the adapters of {type(module).__name__} cannot be scaled with their layer; merge them first")
    for adapter in getattr(module, "lora_B", {}).values():
        _scale_parameters(adapter, factor)
    inner = base_layer(module)
    if isinstance(inner, nn.Linear | Conv1D):
        _scale_parameters(inner, factor)
    else:
        _scale_norm(inner, factor)


@torch.no_grad()
def add_to_projection(module: nn.Module, delta: Tensor) -> None:
    """Add a matrix [in, out] to the weight of a linear layer, of which an adapter stays as it is."""
    inner = base_layer(module)
    delta = delta if isinstance(inner, Conv1D) else delta.T
    inner.weight.add_(delta.to(inner.weight))


@torch.no_grad()
def add_bias(module: nn.Module, vector: Tensor) -> bool:
    """Add a vector [out] to the bias of a linear layer; returns whether it had none and got one."""
    inner = base_layer(module)
    if inner.bias is not None:
        inner.bias.add_(vector.to(inner.bias))
        return False
    inner.bias = nn.Parameter(vector.to(inner.weight).clone(), requires_grad=inner.weight.requires_grad)
    return True


def base_layer(module: nn.Module) -> Any:
    """The layer inside a wrapper of peft's, or the module itself."""
    return getattr(module, "get_base_layer", lambda: module)()


def is_quantised(weight: Tensor) -> bool:
    """Whether nothing can be added to a weight: it is packed in whole numbers, or in a tensor of another kind."""
    return not weight.is_floating_point() or type(weight.data) is not Tensor


def _scale_parameters(module: nn.Module, factor: float | Tensor) -> None:
    for parameter in module.parameters():
        parameter.mul_(factor)


def _scale_norm(norm: Any, factor: float | Tensor) -> None:
    weight, bias = norm.weight, getattr(norm, "bias", None)
    probe = torch.randn(2, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    expected, before = factor * norm(probe), weight.clone()
    if bias is not None:
        bias.mul_(factor)
    # Some norms multiply by their weight, some by one more than that.
    for gain in (before * factor, (1 + before) * factor - 1):
        weight.copy_(gain)
        if torch.allclose(norm(probe), expected, rtol=1e-2, atol=1e-3):
            return
    weight.copy_(before)
    if bias is not None:
        bias.div_(factor)
    raise ModelError(f"the weight of {type(norm).__name__} does not scale its output, so no factor can be folded in")
