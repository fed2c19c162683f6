"""The slow and obvious way, to hold the package against: zero one output by a hook, run everything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.zoo import ZOO

Name = tuple[str, int]


def module_of(model: PreTrainedModel, architecture: str, sublayer: Name) -> nn.Module:
    return model.get_submodule(ZOO[architecture].path(*sublayer))


@contextmanager
def zeroed(model: PreTrainedModel, architecture: str, sublayers: Iterable[Name]) -> Iterator[None]:
    def zero(_: nn.Module, __: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    def keep_residual(_: nn.Module, args: Any, output: Any) -> Any:
        return (args[1], *output[1:]) if isinstance(output, tuple) else args[1]

    handles = [
        module_of(model, architecture, each).register_forward_hook(
            keep_residual if each[0] in ZOO[architecture].inside else zero
        )
        for each in sublayers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: Sequence[dict[str, Tensor]]) -> float:
    total, count = 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"]).logits.double().log_softmax(-1)
        picked = logits[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])
        total, count = total - picked.sum().item(), count + picked.numel()
    return total / count


def scores(
    model: PreTrainedModel,
    architecture: str,
    batches: Sequence[dict[str, Tensor]],
    gone: Sequence[Name],
    *,
    by_share: bool,
) -> dict[Name, float]:
    """RI, or NRI with the share of all parameters, of every sublayer that is not gone."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    with zeroed(model, architecture, gone):
        ppl = math.exp(mean_loss(model, batches))
    found = {}
    for block in range(model.config.num_hidden_layers):
        for kind in ("attention", "mlp"):
            if (kind, block) in gone:
                continue
            with zeroed(model, architecture, [*gone, (kind, block)]):
                impact = (math.exp(mean_loss(model, batches)) - ppl) / ppl
            share = size(model, architecture, (kind, block)) / num_parameters
            found[kind, block] = impact if not by_share else impact / share if impact > 0 else -share
    return found


def size(model: PreTrainedModel, architecture: str, sublayer: Name) -> int:
    kind, block = sublayer
    specimen = ZOO[architecture]
    modules = [model.get_submodule(f"{specimen.blocks}.{block}.{name}") for name in specimen.going(kind)]
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def own_text(model: PreTrainedModel, num_sequences: int, length: int) -> Tensor:
    """Tokens [num_sequences, length] that the model itself writes, so that taking something out of it mostly hurts."""
    start = torch.full((num_sequences, 1), 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model.generate(
            start, max_new_tokens=length - 1, do_sample=True, top_k=0, eos_token_id=None, pad_token_id=1
        )
