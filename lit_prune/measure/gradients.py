"""What weights say of themselves: their size, and the first-order change of the loss without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.anatomy import Anatomy, find_sublayers, own_parameters
from lit_prune.errors import MeasureError
from lit_prune.measure.what_if import WhatIf
from lit_prune.plan.prune_plan import Candidate

Weights = Mapping[Candidate, Sequence[nn.Parameter]]
COST_OF_GRADIENTS = 3
"""Dense passes: one forward, and a backward that is about twice as much."""


def weights_of(what_if: WhatIf, candidates: Sequence[Candidate]) -> Weights:
    """All parameters that go with each candidate, norms and biases included, adapters left out."""
    anatomy = find_sublayers(what_if.model)
    return {each: _parameters(what_if.model, anatomy, each) for each in candidates}


def loss_gradients(what_if: WhatIf, parameters: Sequence[nn.Parameter]) -> dict[int, Tensor]:
    """Gradients of the mean token loss over all batches, from one forward and one backward pass for each of them.

    Only the sum of each parameter's gradients is kept; no `.grad` is touched, and what requires gradients afterwards
    is what did before.

    Args:
        what_if: The model and batches.
        parameters: Of the model.

    Returns:
        By `id` of the parameter, float32 of its shape.

    Raises:
        MeasureError: A parameter is quantised, so that it has no gradient.
    """
    wanted = list({id(each): each for each in parameters}.values())
    if packed := [each.dtype for each in wanted if not each.is_floating_point()]:
        raise MeasureError(f"weights of {packed[0]} have no gradients; load the model in float32 or bfloat16")
    sums = {id(each): torch.zeros_like(each, dtype=torch.float32) for each in wanted}
    objective, num_tokens = what_if.objective, torch.zeros((), device=what_if.model.device)
    with what_if.running(), _requiring_only(what_if.model, wanted), torch.enable_grad():
        for batch in what_if.passes(COST_OF_GRADIENTS):
            nll = objective.of_logits(objective.logits(batch), batch)
            # Not `backward`: that would add to gradients of a training, and wake DDP's hooks.
            found = torch.autograd.grad(nll.sum(), wanted, allow_unused=True)
            for parameter, gradient in zip(wanted, found, strict=True):
                if gradient is not None:
                    sums[id(parameter)] += gradient
            num_tokens += objective.num_targets(batch).sum()
    num_tokens = what_if.processes.sum(num_tokens)
    return {name: what_if.processes.sum(each) / num_tokens for name, each in sums.items()}


def _parameters(model: nn.Module, anatomy: Anatomy, candidate: Candidate) -> list[nn.Parameter]:
    return [
        parameter
        for part in anatomy.parts(candidate.sublayers)
        for _, parameter in own_parameters(model.get_submodule(part.path))
    ]


@contextmanager
def _requiring_only(model: Any, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [(each, each.requires_grad) for each in model.parameters()]
    try:
        for each, _ in before:
            each.requires_grad_(False)
        for each in parameters:
            each.requires_grad_(True)
        yield
    finally:
        for each, required in before:
            each.requires_grad_(required)
