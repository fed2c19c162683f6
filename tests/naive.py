"""The slow and obvious way, to hold the package against: zero one output by a hook, run everything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

PATHS = {
    "llama": ("model.layers", "self_attn", "mlp", "input_layernorm", "post_attention_layernorm"),
    "mistral": ("model.layers", "self_attn", "mlp", "input_layernorm", "post_attention_layernorm"),
    "qwen2": ("model.layers", "self_attn", "mlp", "input_layernorm", "post_attention_layernorm"),
    "gpt2": ("transformer.h", "attn", "mlp", "ln_1", "ln_2"),
    "opt": ("model.decoder.layers", "self_attn", "fc2", "self_attn_layer_norm", "final_layer_norm"),
}
"""Written by hand: block list, attention, the module whose output is the FFN's, and the norm of each."""

Name = tuple[str, int]


def module_of(model: PreTrainedModel, architecture: str, sublayer: Name) -> nn.Module:
    kind, block = sublayer
    blocks, attention, mlp, *_ = PATHS[architecture]
    return model.get_submodule(f"{blocks}.{block}.{attention if kind == 'attention' else mlp}")


@contextmanager
def zeroed(model: PreTrainedModel, architecture: str, sublayers: Iterable[Name]) -> Iterator[None]:
    def zero(_: nn.Module, __: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    handles = [module_of(model, architecture, each).register_forward_hook(zero) for each in sublayers]
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
    blocks, attention, mlp, attention_norm, mlp_norm = PATHS[architecture]
    names = (attention, attention_norm) if kind == "attention" else (mlp, mlp_norm)
    names = (*names, "fc1") if architecture == "opt" and kind == "mlp" else names
    return sum(p.numel() for name in names for p in model.get_submodule(f"{blocks}.{block}.{name}").parameters())


def own_text(model: PreTrainedModel, num_sequences: int, length: int) -> Tensor:
    """Tokens [num_sequences, length] that the model itself writes, so that taking something out of it mostly hurts."""
    start = torch.full((num_sequences, 1), 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model.generate(
            start, max_new_tokens=length - 1, do_sample=True, top_k=0, eos_token_id=None, pad_token_id=1
        )
