"""Weighted ridge regression from sums over tokens, which are all that is kept of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self, cast

import torch
from torch import Tensor

GOLDEN = 0.6180339887498949
"""Multiples of it, without their whole parts, are spread evenly over all that is from 0 to 1."""
HELD_BACK = 4
"""One sequence of so many is held back from a fit, and chooses the ridge."""
PANEL = 512
"""Rows of a symmetric product that are computed at a time, each from its diagonal on: half the work."""
NOTHING = torch.zeros(())
"""The sum over no tokens."""


def held_back(numbers: Tensor) -> Tensor:
    """Which sequences are held back, bool of their numbers: about every fourth, and by no period of a text's kinds.

    Example:
        >>> held_back(torch.arange(8)).tolist()
        [False, False, False, True, False, False, True, False]
    """
    return (numbers.double() * GOLDEN + 0.3) % 1 < 1 / HELD_BACK


@dataclass
class Moments:
    """Second moments of inputs [in] and outputs [out], 0 before the first token."""

    inputs: Tensor = NOTHING  # inputs with inputs, [in, in], of which what is on the diagonal and above it counts
    outputs: Tensor = NOTHING  # inputs with outputs, [in, out]
    total: Tensor = NOTHING  # the sum of the squares of the outputs
    count: Tensor = NOTHING  # the number of tokens

    def add(self, inputs: Tensor, outputs: Tensor, weights: Tensor) -> None:
        """Count in what tokens have as inputs [tokens, in] and outputs [tokens, out], by their weights [tokens]."""
        weighted, number = inputs * weights[:, None], inputs.shape[1]
        if self.inputs is NOTHING:
            self.inputs = inputs.new_zeros(number, number)
        for first in range(0, number, PANEL):
            own = slice(first, first + PANEL)
            self.inputs[own, first:].addmm_(weighted[:, own].T, inputs[:, first:])
        self.outputs = self.outputs + weighted.T @ outputs
        self._count_in(outputs, weights)

    def _count_in(self, outputs: Tensor, weights: Tensor) -> None:
        self.total = self.total + (weights[:, None] * outputs.square()).sum()
        self.count = self.count + torch.tensor(float(len(outputs)), device=outputs.device)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every sum changed."""
        return type(self)(change(self.inputs), change(self.outputs), change(self.total), change(self.count))

    def __add__(self, other: Moments) -> Self:
        parts = ((getattr(self, each.name), getattr(other, each.name)) for each in fields(self))
        return type(self)(*(own + its for own, its in parts))

    def solved(self, ridge: float, free: int = 0) -> Tensor:
        """The map [in, out] with the least squares of the error and, times `ridge` and the inputs' mean, of itself.

        What it makes of the last `free` inputs does not count as its own size.
        """
        penalty = torch.zeros_like(self.inputs.diagonal())
        bound = len(penalty) - free
        penalty[:bound] = ridge * self.inputs.diagonal()[:bound].mean().clamp(min=torch.finfo(torch.float32).tiny)
        matrix = self.inputs + penalty.diag()
        root, failed = torch.linalg.cholesky_ex(matrix, upper=True)
        if int(failed):  # by rounding: inputs that are nearly the same
            return cast(Tensor, torch.linalg.solve(matrix.triu() + matrix.triu(1).T, self.outputs))
        return torch.cholesky_solve(self.outputs, root, upper=True)

    def explained(self, solution: Tensor) -> float:
        """The share of the outputs' squares that a map predicts; below 0 where it makes them larger.

        Example:
            >>> moments = Moments()
            >>> moments.add(torch.eye(2), 3 * torch.eye(2), torch.ones(2))
            >>> moments.explained(3 * torch.eye(2))
            1.0
        """
        # What is above the diagonal stands for what is below it as well.
        size = 2 * (solution * (self.inputs.triu() @ solution)).sum()
        size -= (self.inputs.diagonal()[:, None] * solution.square()).sum()
        gain = 2 * (solution * self.outputs).sum() - size
        return float(gain / self.total) if float(self.total) > 0 else 0.0


class DiagonalMoments(Moments):
    """The same where every output has an input of its own, and no other: all sums are vectors [out]."""

    def add(self, inputs: Tensor, outputs: Tensor, weights: Tensor) -> None:
        """See `Moments`."""
        weighted = inputs * weights[:, None]
        self.inputs = self.inputs + (weighted * inputs).sum(dim=0)
        self.outputs = self.outputs + (weighted * outputs).sum(dim=0)
        self._count_in(outputs, weights)

    def solved(self, ridge: float, free: int = 0) -> Tensor:
        """The factors [out]; see `Moments`."""
        strength = ridge * self.inputs.mean().clamp(min=torch.finfo(torch.float32).tiny)
        return self.outputs / (self.inputs + strength)

    def explained(self, solution: Tensor) -> float:
        """See `Moments`."""
        gain = (2 * solution * self.outputs - solution.square() * self.inputs).sum()
        return float(gain / self.total) if float(self.total) > 0 else 0.0
