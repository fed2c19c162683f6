"""Digests of a model's weights, every number of them: what says that two models are the same to the last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.loading.devices import values_of

BYTES_AT_A_TIME = 1 << 26


def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Go through parameters, shared ones once, and saved buffers by name, wherever their values are."""
    kept = set(model.state_dict(keep_vars=True))
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in kept]
    for name, tensor in [*model.named_parameters(), *buffers]:
        yield name, values_of(model, name, tensor)


def is_packed(values: Tensor) -> bool:
    """Whether a tensor is none of torch's own, as torchao's quantised ones."""
    return type(values).__torch_dispatch__ is not Tensor.__torch_dispatch__


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 of all weights with their names, shapes and types, in hex. Of a sharded model, all processes ask."""
    digest = hashlib.sha256()
    for name, values in weights_of(model):
        digest.update(name.encode())
        add_tensor(digest, values.dequantize() if is_packed(values) else values)
    return digest.hexdigest()


def add_tensor(digest: Any, values: Tensor) -> None:
    """Add a tensor's shape, type and numbers to a digest of hashlib's."""
    digest.update(f"{tuple(values.shape)}{values.dtype}".encode())
    for part in torch.split(values.detach().contiguous().flatten().view(torch.uint8), BYTES_AT_A_TIME):
        # A copy, as FSDP2 could no longer free what numpy has seen.
        digest.update(part.to("cpu", copy=True).numpy().data)
