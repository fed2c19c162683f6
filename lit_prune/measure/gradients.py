"""The parameters that go with candidates, and the gradients of the loss with respect to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lit_prune.anatomy import find_sublayers, own_parameters
from lit_prune.errors import MeasureError
from lit_prune.measure.what_if import WhatIf
from lit_prune.plan import Candidate

COST_OF_GRADIENTS = 3
"""Dense passes: one forward, and a backward that is about twice as much."""


def weights_of(what_if: WhatIf, candidates: Sequence[Candidate]) -> Mapping[Candidate, Sequence[nn.Parameter]]:
    """All parameters that go with each candidate, norms and biases included, adapters left out."""
    model, anatomy = what_if.model, find_sublayers(what_if.model)
    return {
        candidate: [
            parameter
            for part in anatomy.parts(candidate.sublayers)
            for _, parameter in own_parameters(model.get_submodule(part.path))
        ]
        for candidate in candidates
    }


def loss_gradients(what_if: WhatIf, parameters: Sequence[nn.Parameter]) -> dict[int, Tensor]:
    """Gradients of the mean token loss over all batches, from one forward and one backward pass for each of them.

    Only the sum of each parameter's gradients is kept; no `.grad` is touched, and what requires gradients afterwards
    is what did before.

    Args:
        what_if: The model and batches.
        parameters: Parameters of the model.

    Returns:
        By `id` of the parameter, float32 of its shape.

    Raises:
        MeasureError: A parameter is quantised, so that it has no gradient.
    """
    wanted = list({id(parameter): parameter for parameter in parameters}.values())
    if packed := [parameter.dtype for parameter in wanted if not parameter.is_floating_point()]:
        raise MeasureError(f"weights of {packed[0]} have no gradients; load the model in float32 or bfloat16")
    sums = {id(parameter): torch.zeros_like(parameter, dtype=torch.float32) for parameter in wanted}
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
    return {key: what_if.processes.sum(total) / num_tokens for key, total in sums.items()}


@contextmanager
def _requiring_only(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
