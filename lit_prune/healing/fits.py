"""What of a site is fitted, from which sums, and how the solution gets into its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_prune.healing.folding import add_bias, add_to_projection, base_layer, scale_output
from lit_prune.healing.lockstep import Seen
from lit_prune.healing.regression import DiagonalMoments, Moments

TINY = torch.finfo(torch.float32).tiny
LEAST_GAIN = 1e-3
"""Of the largest gain of a norm, the share below which a dimension is as good as closed."""


@dataclass
class Terms:
    """A linear least-squares problem on some tokens.

    Attributes:
        inputs: [tokens, in].
        outputs: [tokens, out].
        weights: What each token counts, [tokens].
        held_back: Which tokens are held back, bool [tokens].
    """

    inputs: Tensor
    outputs: Tensor
    weights: Tensor
    held_back: Tensor


class Fit(Protocol):
    """What is solved for at a site: one least-squares problem, or several that stand apart.

    Attributes:
        watched: Paths of the modules that are to be seen.
        free: How many of the last inputs the ridge leaves alone.
        least: How many times as many tokens as inputs are wanted.
    """

    watched: tuple[str, ...]
    free: int
    least: float

    def moments(self) -> Moments:
        """Sums over no tokens, of one problem."""
        ...

    def terms(self, seen: Seen, missing: Tensor, weights: Tensor) -> dict[int, Terms]:
        """The problems by their numbers, which are the same on all batches.

        Args:
            seen: What was seen.
            missing: What the site should add more, [tokens, hidden].
            weights: What each token counts.
        """
        ...

    def apply(self, number: int, solution: Tensor) -> None:
        """Change the weights by the solution of a problem, [in, out]."""
        ...


class ProjectionFit:
    """Linear layers that write into the stream as they are: what they read side by side, and 1 where one has a bias."""

    least = 0.0

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.watched: tuple[str, ...] = tuple(modules)
        self._modules = list(modules.values())
        self.free = int(any(layer.bias is not None for layer in self.layers()))

    def moments(self) -> Moments:
        """See `Fit`."""
        return Moments()

    def terms(self, seen: Seen, missing: Tensor, weights: Tensor) -> dict[int, Terms]:
        """See `Fit`."""
        inputs = _with_ones([seen.given[path] for path in self.watched], self.free)
        return {0: Terms(inputs, missing, weights, seen.held_back)}

    def apply(self, number: int, solution: Tensor) -> None:
        """See `Fit`."""
        widths = [layer.weight.numel() // solution.shape[1] for layer in self.layers()]
        for module, delta in zip(self._modules, torch.split(solution[: sum(widths)], widths), strict=True):
            add_to_projection(module, delta)
        if self.free:
            add_bias(next(module for module in self._modules if base_layer(module).bias is not None), solution[-1])

    def layers(self) -> list[Any]:
        """The layers, without adapters."""
        return [base_layer(module) for module in self._modules]


class NormedProjectionFit(ProjectionFit):
    """A linear layer with an RMS norm behind it, as if the norm went on dividing every token by what it does now.

    The norm puts out g z / |z| of what the layer puts out, z. What is solved for is g times the change of the layer,
    whose rows are divided by g then.

    Args:
        path: Path of the layer.
        module: The layer.
        gain: g, [out].
    """

    def __init__(self, path: str, module: nn.Module, gain: Tensor) -> None:
        super().__init__({path: module})
        self._gain = gain

    def terms(self, seen: Seen, missing: Tensor, weights: Tensor) -> dict[int, Terms]:
        """See `Fit`."""
        scale = seen.put_out[self.watched[0]].square().mean(dim=1, keepdim=True).clamp(min=TINY).rsqrt()
        return super().terms(seen, missing / scale, weights * scale.squeeze(1).square())

    def apply(self, number: int, solution: Tensor) -> None:
        """See `Fit`."""
        gain = self._gain.to(solution)
        usable = gain.abs() > LEAST_GAIN * gain.abs().max()
        super().apply(number, torch.where(usable, solution / torch.where(usable, gain, 1.0), 0.0))


@dataclass
class GainFit:
    """A norm behind a sublayer: one factor for each dimension of what it puts out."""

    path: str
    norm: nn.Module
    free: int = 0
    least: float = 0.0

    def __post_init__(self) -> None:
        self.watched: tuple[str, ...] = (self.path,)

    def moments(self) -> DiagonalMoments:
        """See `Fit`."""
        return DiagonalMoments()

    def terms(self, seen: Seen, missing: Tensor, weights: Tensor) -> dict[int, Terms]:
        """See `Fit`."""
        return {0: Terms(seen.put_out[self.path], missing, weights, seen.held_back)}

    def apply(self, number: int, solution: Tensor) -> None:
        """See `Fit`."""
        scale_output(self.norm, 1 + solution)


def rms_gain(norm: nn.Module, width: int) -> Tensor | None:
    """The gain g of a norm that puts out g z / |z|, |z| the root of the mean square; None where it does otherwise."""
    weight = next(norm.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    probe = (1 + torch.rand(2, width, generator=generator)).to(weight)
    with torch.no_grad():
        first, second = norm(probe).float() * probe.float().square().mean(dim=1, keepdim=True).sqrt() / probe.float()
    return first if torch.allclose(first, second, rtol=0.02, atol=LEAST_GAIN * float(first.abs().max())) else None


def _with_ones(inputs: Sequence[Tensor], number: int) -> Tensor:
    """Inputs side by side, and 1 behind them where there is a bias."""
    return torch.cat([*inputs, torch.ones(len(inputs[0]), number, device=inputs[0].device)], dim=1)
