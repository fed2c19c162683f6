"""What a tensor is beside another of its shape and type, exactly and in few bytes.

Numbers of a type stand in one order, and a difference is by how many places one of them was moved. A weight that was
healed a little has moved by a few: most bytes of such differences are zeros, and deflate leaves them out.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from lit_prune.errors import ModelError

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by the number of their bytes."""
LEVEL = 6


def difference(new: Tensor, old: Tensor) -> Tensor:
    """Pack what makes `new` of `old`, both [...] of one shape and type, into bytes [size] on the CPU.

    Example:
        >>> old = torch.linspace(-1, 1, 1000)
        >>> packed = difference(old * (1 + 1e-6), old)
        >>> len(packed) < 4 * len(old), torch.equal(with_difference(old, packed), old * (1 + 1e-6))
        (True, True)
    """
    moved = _places(new.detach().cpu()) - _places(old.detach().cpu())
    bits = 8 * moved.element_size()
    unsigned = (moved << 1) ^ (moved >> (bits - 1))  # -1 is 1, 1 is 2: small ones have zeros in all bytes but one
    planes = unsigned.flatten().view(torch.uint8).view(-1, moved.element_size()).T.contiguous()
    return torch.frombuffer(bytearray(zlib.compress(planes.numpy().data, LEVEL)), dtype=torch.uint8)


def with_difference(old: Tensor, packed: Tensor) -> Tensor:
    """The tensor [...] of which `difference` to `old` is this, on the CPU; no more is unpacked than `old` has bytes.

    Raises:
        ModelError: The bytes are no difference, or one of a tensor of another size.
    """
    integers = _places(old.detach().cpu())
    size = integers.numel() * integers.element_size()
    try:
        unpacker = zlib.decompressobj()
        planes = unpacker.decompress(packed.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise ModelError(f"what is to change a tensor is damaged: {error}") from error
    if not size or len(planes) != size:
        raise ModelError(f"what is to change a tensor of {size:,} bytes is of another size")
    bits = 8 * integers.element_size()
    in_order = torch.frombuffer(bytearray(planes), dtype=torch.uint8).view(integers.element_size(), -1).T.contiguous()
    unsigned = in_order.view(INTEGERS[integers.element_size()]).view(integers.shape)
    half = (unsigned >> 1) & ((1 << (bits - 1)) - 1)  # as of an unsigned number
    moved = half ^ -(unsigned & 1)
    return _in_place(integers + moved, old.dtype)


def _places(values: Tensor) -> Tensor:
    """The places of numbers among all of their type, as integers of their size; sums of these go round."""
    integers = values.contiguous().view(INTEGERS[values.element_size()])
    return _turned(integers) if values.is_floating_point() else integers


def _in_place(places: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `_places`."""
    return (_turned(places) if dtype.is_floating_point else places).view(dtype)


def _turned(integers: Tensor) -> Tensor:
    """Negative floats have their order from the larger magnitude down; turned round, it is that of integers."""
    bits = 8 * integers.element_size()
    return integers ^ ((integers >> (bits - 1)) & ((1 << (bits - 1)) - 1))
