"""What stands in the place of a sublayer that is muted or gone: modules without parameters that add nothing.

Hugging Face's own decoder layer goes on calling them, so nothing of it has to be rewritten.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AttentionStub(nn.Module):
    """Returns `(zeros, None)` in the form of every attention module of transformers."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Zeros of the input's shape [batch, seq, hidden]; a fresh tensor, since some blocks add in place."""
        return torch.zeros_like(hidden_states), None


class MlpStub(nn.Module):
    """Returns zeros, in a tuple where the FFN that it stands for returned one."""

    def __init__(self, *, as_tuple: bool = False) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        """Zeros of the input's shape [..., hidden]."""
        zeros = torch.zeros_like(hidden_states)
        return (zeros, None) if self.as_tuple else zeros
