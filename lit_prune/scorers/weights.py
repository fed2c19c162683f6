"""Scores by the weights of a candidate: their size alone, or with the gradient of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_prune.errors import LitPruneError
from lit_prune.loading.devices import whole
from lit_prune.measure import WhatIf, loss_gradients, weights_of
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.scorers.base import SCORERS, Scorer


@dataclass(frozen=True)
class _Protecting(Scorer):
    """Keeps the ends of the model, as Shortened LLaMA does in `Taylor+` and `Magnitude+`."""

    together = True

    protect_first: int = 4
    protect_last: int = 2

    def __post_init__(self) -> None:
        for name in ("protect_first", "protect_last"):
            if getattr(self, name) < 0:
                raise LitPruneError(f"{name} is a number of blocks, 0 or more; found {getattr(self, name)}")

    def protected_blocks(self, num_blocks: int) -> set[int]:
        """The first and last blocks of the original model."""
        last = range(max(0, num_blocks - self.protect_last), num_blocks)
        return {*range(min(self.protect_first, num_blocks)), *last}


@SCORERS.register("taylor")
@dataclass(frozen=True)
class Taylor(_Protecting):
    """Sum of |W * dL/dW| over a candidate's weights: how much the loss would change without each, to first order.

    Taylor+ of Shortened LLaMA (arXiv 2402.02834). L is the mean token loss over all batches; the gradient is summed
    over them before the absolute value is taken. In nats; higher is more important. The sum is over all parameters that
    would go, norms and biases included. For sublayers, blocks and any set; one forward and one backward pass in all,
    with a float32 sum of gradients for every weight.

    Args:
        protect_first: Number of first blocks of the original model that never go: raw scores may rank block 0 as the
            least important, which it never is.
        protect_last: Number of last blocks that never go.

    Raises:
        LitPruneError: A number is negative.
        MeasureError: When called, weights are quantised.
    """

    gradients = True

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score by one forward and one backward pass."""
        weights = weights_of(what_if, candidates)
        gradients = loss_gradients(what_if, [weight for own in weights.values() for weight in own])
        return _totals(weights, lambda weight: (weight.float() * gradients[id(weight)]).abs())


@SCORERS.register("magnitude")
@dataclass(frozen=True)
class Magnitude(_Protecting):
    """Sum of |W|^power over a candidate's weights (Magnitude+ of Shortened LLaMA, arXiv 2402.02834).

    Higher is more important. The sum is over all parameters that would go, norms and biases included. For sublayers,
    blocks and any set; no pass at all.

    Args:
        protect_first: Number of first blocks of the original model that never go.
        protect_last: Number of last blocks that never go.
        power: The exponent of the absolute weights, 1 or 2.

    Raises:
        LitPruneError: A number is negative, or the power another.
    """

    power: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power not in (1, 2):
            raise LitPruneError(f"power must be 1 or 2; found {self.power!r}")

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score without any pass."""
        return _totals(weights_of(what_if, candidates), lambda weight: weight.float().abs() ** self.power)


def _totals(weights: Mapping[Candidate, Sequence[Tensor]], value: Callable[[Tensor], Tensor]) -> Scores:
    """The sum of a value of every weight, by candidate."""
    with torch.no_grad():
        return Scores(
            {candidate: sum(float(whole(value(weight).sum())) for weight in own) for candidate, own in weights.items()}
        )
