"""What each sublayer costs its user, as a share of the whole model: by parameters or by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_prune.anatomy import Anatomy, find_sublayers, language_model
from lit_prune.plan import SublayerId

NORMALISERS = ("parameters", "flops", "none")


def sublayer_shares(model: Any, normaliser: str, *, num_positions: int) -> Mapping[SublayerId, float]:
    """The share of the model's cost that each present sublayer carries.

    Args:
        model: A causal language model.
        normaliser: `parameters`; `flops` (a forward pass over one sequence); `none` gives 1 to each.
        num_positions: Length of that sequence; attention's arithmetic grows with it.
    """
    model = language_model(model)
    anatomy = find_sublayers(model)
    if normaliser == "none":
        return {each.id: 1.0 for each in anatomy.sublayers}
    if normaliser == "parameters":
        return {each.id: each.num_parameters / anatomy.num_parameters for each in anatomy.sublayers}
    flops = {each.id: _flops(model, anatomy, each.id, num_positions) for each in anatomy.sublayers}
    head = model.get_output_embeddings()
    total = sum(flops.values()) + (2 * head.weight.numel() if head is not None else 0)
    return {sublayer: each / total for sublayer, each in flops.items()}


def _flops(model: Any, anatomy: Anatomy, sublayer: SublayerId, num_positions: int) -> int:
    """Per token: two for each weight of a matrix, and for attention the products with the keys and values before."""
    modules = [model.get_submodule(part.path) for part in anatomy[sublayer].parts]
    weights: int = sum(
        parameter.numel()
        for module in modules
        for name, parameter in module.named_parameters()
        if parameter.ndim == 2 and "lora_" not in name
    )
    if sublayer.kind != "attention":
        return 2 * weights
    config = model.config.get_text_config(decoder=True)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # A token sees half of the sequence on average; scores and weighted values take 2 each for every key element.
    return 2 * weights + 2 * num_positions * int(config.num_attention_heads * head_dim)
