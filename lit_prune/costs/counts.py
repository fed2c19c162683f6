"""What sublayers cost by counting: parameters, arithmetic and cache, and their shares of the whole model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from lit_prune.anatomy import (
    Anatomy,
    Sublayer,
    cache_of,
    cache_option,
    decoder_config,
    experts_per_token,
    find_sublayers,
    language_model,
    routed_parameters,
)
from lit_prune.errors import MeasureError
from lit_prune.plan import Candidate, SublayerId
from lit_prune.surgery import remove

NORMALISERS = ("parameters", "active_parameters", "flops", "kv_cache", "none")


@dataclass(frozen=True)
class Costs:
    """What one token costs after a number of others, by sublayer and in the whole model.

    Attributes:
        flops: Floating-point operations of every present sublayer, two for a multiplication with its addition; of
            experts, those that a token goes through.
        kv_elements: How many numbers every present sublayer adds to the cache for a token.
        total_flops: Floating-point operations of the whole model, head included.
        num_positions: How many tokens come before the one that is counted.
    """

    flops: Mapping[SublayerId, int]
    kv_elements: Mapping[SublayerId, int]
    total_flops: int
    num_positions: int

    @property
    def total_kv_elements(self) -> int:
        """How many numbers all sublayers add to the cache for a token."""
        return sum(self.kv_elements.values())


def count_costs(model: nn.Module, num_positions: int) -> Costs:
    """Count what one token costs, by running the model's own code on the meta device: no weights, no arithmetic.

    Args:
        model: A causal language model on any device, perhaps pruned.
        num_positions: How many tokens come before the one that is counted.

    Raises:
        MeasureError: The model's code cannot run without values.
    """
    model = language_model(model)
    twin = _meta_twin(model)
    anatomy = find_sublayers(twin)
    # Without any attention there is nothing to cache, and the other tokens make no difference. (With no cache at all,
    # transformers would look at the values of the positions.)
    cached = any(sublayer.id.kind == "attention" for sublayer in anatomy.sublayers)
    try:
        with torch.no_grad():
            context = DynamicCache()
            if cached:
                context = cache_of(twin(input_ids=_tokens(num_positions), use_cache=True))
            with FlopCounterMode(display=False) as counter:
                after = twin(input_ids=_tokens(1), **cache_option(twin, context), use_cache=cached)
    except (RuntimeError, NotImplementedError) as error:
        raise MeasureError(f"the arithmetic of this {anatomy.model_type} model cannot be counted: {error}") from error
    counts = {name: sum(amounts.values()) for name, amounts in counter.get_flop_counts().items()}
    counted = {name.removeprefix(f"{type(twin).__name__}."): count for name, count in counts.items()}
    experts = {sublayer.id: _experts(twin, sublayer, counted) for sublayer in anatomy.sublayers}
    seen = {sublayer.id: sum(counted.get(part.path, 0) for part in sublayer.parts) for sublayer in anatomy.sublayers}
    flops = {sublayer: experts[sublayer] + count for sublayer, count in seen.items()}
    kv_elements = {sublayer: _kv_elements(sublayer, anatomy, cache_of(after)) for sublayer in seen}
    return Costs(flops, kv_elements, counts["Global"] + sum(experts.values()), num_positions)


def candidate_shares(
    model: Any, candidates: Sequence[Candidate], normaliser: str, *, num_positions: int
) -> Mapping[Candidate, float]:
    """The share of the model's cost that goes with each candidate.

    Args:
        model: A causal language model.
        candidates: The candidates for removal.
        normaliser: `parameters`; `active_parameters` (of experts, those that a token goes through); `flops` and
            `kv_cache` of one token after `num_positions` others; `none` gives 1 to each candidate.
        num_positions: The length of a calibration sequence.

    Raises:
        MeasureError: The model has no KV cache, or its arithmetic cannot be counted.
    """
    if normaliser == "none":
        return dict.fromkeys(candidates, 1.0)
    model = language_model(model)
    anatomy = find_sublayers(model)
    freed = {candidate: anatomy.num_freed(candidate.sublayers) for candidate in candidates}
    if normaliser == "parameters":
        return {candidate: number / anatomy.num_parameters for candidate, number in freed.items()}
    if normaliser == "active_parameters":
        active = anatomy.num_active_parameters
        idle = {sublayer.id: sublayer.num_idle_parameters for sublayer in anatomy.sublayers}
        return {candidate: (number - _sum(idle, candidate)) / active for candidate, number in freed.items()}
    costs = count_costs(model, num_positions)
    flops, cache = (costs.flops, costs.total_flops), (costs.kv_elements, costs.total_kv_elements)
    amounts, total = flops if normaliser == "flops" else cache
    return {candidate: _sum(amounts, candidate) / total for candidate in candidates}


def _meta_twin(model: Any) -> Any:
    """The same structure without values. bfloat16 and eager attention, which every architecture can run there."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    decoder = config.get_text_config(decoder=True)
    # With a padding token, some models look at the values of the tokens.
    config.pad_token_id = decoder.pad_token_id = None
    with torch.device("meta"):
        twin = type(model)(config)
    whole = find_sublayers(twin)
    remove(twin, [sublayer for sublayer in find_sublayers(model).removed if sublayer in whole])
    decoder.use_cache = True
    return twin.to(torch.bfloat16).eval()


def _tokens(number: int) -> torch.Tensor:
    return torch.zeros(1, number, dtype=torch.long, device="meta")


def _sum(amounts: Mapping[SublayerId, int], candidate: Candidate) -> int:
    return sum(amounts[sublayer] for sublayer in candidate.sublayers)


def _experts(model: nn.Module, sublayer: Sublayer, counted: Mapping[str, int]) -> int:
    """What the counter misses: it sees no grouped product, and all experts where each runs on every token."""
    module = model.get_submodule(sublayer.path)
    routed = list(routed_parameters(module))
    if not routed:
        return 0
    per_token = experts_per_token(decoder_config(model))
    # Fused weights are stacked in a third dimension; what has one less is a bias.
    weights = sum(weight.numel() // num for weight, num in routed if weight.ndim - (weight.shape[0] == num) > 1)
    paths = [name for name, _ in module.named_modules() if name.rpartition(".")[2] == "experts"]
    return 2 * weights * per_token - sum(counted.get(f"{sublayer.path}.{path}", 0) for path in paths)


def _kv_elements(sublayer: SublayerId, anatomy: Anatomy, cache: Any) -> int:
    if sublayer.kind != "attention":
        return 0
    layer = cache.layers[anatomy.position(sublayer.block)]
    return sum(part.shape[1] * part.shape[-1] for part in (layer.keys, layer.values))
