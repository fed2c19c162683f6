"""What stands in the place of a sublayer that is muted or gone: a module without parameters that adds nothing.

Hugging Face's own decoder layer goes on calling it, so nothing of it has to be rewritten.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import cache_utils


@dataclass(frozen=True)
class ResidualArgument:
    """An argument of `forward` with the residual stream, which the module adds by itself.

    Attributes:
        name: Name of the argument.
        position: Its place among the arguments after the hidden states, from 0.
    """

    name: str
    position: int

    @classmethod
    def of(cls, module: nn.Module, name: str) -> ResidualArgument | None:
        """Find the argument in the signature of a module's `forward`; None where the block does the addition."""
        names = _further_arguments(type(module).forward)
        return cls(name, names.index(name)) if name in names else None

    def pick(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The residual among the arguments after the hidden states."""
        return cast(Tensor, kwargs[self.name] if self.name in kwargs else args[self.position])


@functools.cache
def _further_arguments(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what it takes after the hidden states: the same for every block, and slow to read."""
    return tuple(inspect.signature(forward).parameters)[2:]


class SublayerStub(nn.Module):
    """Takes the arguments of an attention or FFN and returns what adds nothing, in the form that it returned.

    Args:
        as_tuple: Whether the sublayer returned `(output, something)`.
        residual: The argument that the sublayer added its output to; None where the block does so.
        layer_idx: Where an attention kept its keys and values, which is the block's position in the list.
    """

    def __init__(
        self, *, as_tuple: bool, residual: ResidualArgument | None = None, layer_idx: int | None = None
    ) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        self.residual = residual
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        """Zeros of the input's shape [..., hidden], or the residual."""
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, cache_utils.Cache) and self.layer_idx is not None:
                self._keep_nothing(argument, self.layer_idx, hidden_states)
        # The zeros are a fresh tensor, since some blocks add in place.
        output = torch.zeros_like(hidden_states) if self.residual is None else self.residual.pick(args, kwargs)
        return (output, None) if self.as_tuple else output

    @staticmethod
    def _keep_nothing(cache: Any, layer_idx: int, hidden_states: Tensor) -> None:
        # The length of the text is read from the first layer that is no dummy. `DynamicCache()`, made without config,
        # learns of its layers as they write; one that never does would be empty.
        dummy = getattr(cache_utils, "DummyLayer", None)
        if dummy is None:  # Before transformers 5.23 no layer is, and one number a token keeps the length.
            length = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(length, length, layer_idx)
        elif len(cache.layers) == layer_idx:
            cache.layers.append(dummy())
