"""A model as the plain one that computes the same, which runtimes let lack sublayers: `targets.KIN` says how.

What is written elsewhere is folded into tensors: multipliers, fused projections, and rotations of neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from lit_prune.export.targets import EMBEDDING, HEAD, KIN, PLAIN_SETTINGS, Kin


def as_llama(model: PreTrainedModel) -> tuple[Any, dict[str, Tensor]]:
    """The config and tensors of a `LlamaForCausalLM` that computes what a pruned model of one of `targets.KIN` does.

    Tensors that stay as they are share the model's memory. Names are those of the blocks that are there.
    """
    config, kin = model.config, KIN[model.config.model_type]
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        tensors |= _apart(name, value, kin, config)
    for name, value in tensors.items():
        tensors[name] = _folded(name, value, kin, config)
    tied = config.tie_word_embeddings and _same(tensors[HEAD], tensors[EMBEDDING])
    if tied:
        del tensors[HEAD]
    biased = [name for name in tensors if name.endswith("self_attn.q_proj.bias")]
    for name in biased:  # a plain one has them on all four or none
        output = name.replace("q_proj", "o_proj")
        tensors.setdefault(output, tensors[name].new_zeros(config.hidden_size))
    taken = {name: getattr(config, name) for name in PLAIN_SETTINGS if getattr(config, name, None) is not None}
    return LlamaConfig(
        **taken,
        head_dim=head_size(config),
        hidden_act="silu",  # under the one name that all know
        tie_word_embeddings=tied,
        attention_bias=bool(biased),
        mlp_bias=any(name.endswith("mlp.gate_proj.bias") for name in tensors),
        dtype=model.dtype,
    ), tensors


def head_size(config: Any) -> int:
    """Numbers in a head of attention."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection [heads * head, ...] for a rotation of neighbours.

    transformers mostly rotates the first half of a head with the second.
    """
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def in_halves(weight: Tensor, heads: int) -> Tensor:
    """Undo `interleaved`."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _apart(name: str, value: Tensor, kin: Kin, config: Any) -> dict[str, Tensor]:
    """Projections of one matrix that hold several, one below the other."""
    path, _, leaf = name.rpartition(".")
    parent, _, last = path.rpartition(".")
    if last not in kin.fused:
        return {name: value}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads["v_proj"] = heads["k_proj"]
    rows = [heads[part] * head_size(config) if part in heads else len(value) // 2 for part in kin.fused[last]]
    parts = zip(kin.fused[last], torch.split(value, rows), strict=True)
    return {f"{parent}.{part}.{leaf}": each.clone() for part, each in parts}  # views are not saved


def _folded(name: str, value: Tensor, kin: Kin, config: Any) -> Tensor:
    module = name.split(".")[-2]
    for setting, modules, factor in kin.multipliers:
        if module in modules and (by := factor(getattr(config, setting), head_size(config))) != 1:
            value = value * by
    if kin.neighbours and module in ("q_proj", "k_proj"):
        value = in_halves(value, config.num_attention_heads if module == "q_proj" else config.num_key_value_heads)
    return value


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
