"""The output projections of experts, each solved for on the tokens that are routed to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.anatomy import Sublayer
from lit_prune.healing.block_stream import ROUTED, multiple
from lit_prune.healing.fits import Terms
from lit_prune.healing.folding import is_quantised
from lit_prune.healing.lockstep import Seen
from lit_prune.healing.regression import Moments
from lit_prune.surgery import evaluating, first_tensor, run_few_tokens

INTERFACE = ("num_experts", "down_proj", "is_transposed", "has_bias", "has_post_expert_norm", "_apply_gate")
"""What transformers' experts have whose weights are in one tensor (`use_experts_implementation`)."""

MOST_BESIDE = 0.05
"""The share of a change in a sublayer's output that that of its experts' need not account for: rounding."""


class ExpertFit:
    """Experts of transformers' common form: of a token's k, each makes up for the share that its weight has.

    An expert adds g W a to a token, g its routing weight. Each is solved for by itself, for as much of what is missing
    as g² is of the sum of all g² of the token: the shares of a token add up to all of it.

    Args:
        path: Path of the experts.
        experts: The module, called with hidden states [tokens, hidden], numbers of experts and weights [tokens, k].
        scale: What its output is multiplied by before it joins the sublayer's.
    """

    least = 1.0

    def __init__(self, path: str, experts: Any, scale: float) -> None:
        self.watched: tuple[str, ...] = (path,)
        self.free = int(experts.has_bias)
        self._experts, self._scale = experts, scale

    def moments(self) -> Moments:
        """See `Fit`."""
        return Moments()

    def terms(self, seen: Seen, missing: Tensor, weights: Tensor) -> dict[int, Terms]:
        """See `Fit`; the problems are those of the experts."""
        (path,) = self.watched
        hidden, numbers, routing = (seen.given[f"{path}{end}"] for end in ("", *ROUTED))
        shares = routing.square() / routing.square().sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        found = {}
        for number in range(self._experts.num_experts):
            tokens, slots = torch.nonzero(numbers == number, as_tuple=True)
            factor = routing[tokens, slots, None]
            inputs = factor * self._inner(hidden[tokens], number)
            inputs = torch.cat([inputs, factor.expand(-1, self.free)], dim=1)
            outputs = shares[tokens, slots, None] * missing[tokens] / self._scale
            found[number] = Terms(inputs, outputs, weights[tokens], seen.held_back[tokens])
        return found

    def apply(self, number: int, solution: Tensor) -> None:
        """See `Fit`."""
        experts = self._experts
        weight = experts.down_proj.data[number]
        width = solution.shape[0] - self.free
        weight.add_((solution[:width] if experts.is_transposed else solution[:width].T).to(weight))
        if self.free:
            experts.down_proj_bias.data[number].add_(solution[-1].to(weight))

    def _inner(self, hidden: Tensor, number: int) -> Tensor:
        """What an expert's output projection reads, float32 [tokens, in]."""
        experts = self._experts
        name = "gate_up_proj" if getattr(experts, "has_gate", True) else "up_proj"
        weight = getattr(experts, name)[number]
        out = hidden.to(weight) @ (weight if experts.is_transposed else weight.T)
        if experts.has_bias:
            out = out + getattr(experts, f"{name}_bias")[number]
        inner: Tensor = experts._apply_gate(out) if name == "gate_up_proj" else experts.act_fn(out)
        return inner.float()


def expert_fit(model: Any, sublayer: Sublayer) -> ExpertFit | None:
    """The fit of a sublayer's experts, where there are some of the common form that join its output as they are."""
    module = model.get_submodule(sublayer.path)
    paths = [name for name, child in module.named_modules() if all(hasattr(child, each) for each in INTERFACE)]
    if len(paths) != 1 or sublayer.residual is not None:
        return None
    path = ".".join(filter(None, (sublayer.path, paths[0])))
    experts: Any = model.get_submodule(path)
    if experts.has_post_expert_norm or is_quantised(experts.down_proj):
        return None
    scale = _scale_of(model, module, experts)
    return None if scale is None else ExpertFit(path, experts, scale)


def _scale_of(model: Any, module: nn.Module, experts: nn.Module) -> float | None:
    """What experts' output is multiplied by in that of their sublayer; None where it is not just added."""
    seen: dict[str, Tensor] = {}
    doubled = False

    def after_experts(_: Any, __: Any, output: Tensor) -> Tensor:
        seen["experts"] = output.detach().float()
        return 2 * output if doubled else output

    def after(_: Any, __: Any, output: Any) -> None:
        seen["twice" if doubled else "once"] = first_tensor(output).detach().float()

    with experts.register_forward_hook(after_experts), module.register_forward_hook(after), evaluating(model):
        run_few_tokens(model)
        doubled = True
        run_few_tokens(model)
    change, own = (seen["twice"] - seen["once"]).flatten(0, -2), seen["experts"].flatten(0, -2)
    if change.shape != own.shape:
        return None
    scale, rest = multiple(change, own)
    return scale if scale > 0 and rest <= MOST_BESIDE * float(change.norm()) else None
