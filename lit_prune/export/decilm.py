"""DeciLM's layout, whose blocks may lack their attention or FFN: what vLLM and mlx-lm have in common."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_state_dict_from_file, save_torch_state_dict
from torch import Tensor

from lit_prune.errors import ModelError
from lit_prune.files import write_text
from lit_prune.plan import SublayerId

SHARD = "5GB"
PARTS = {"attention": "self_attn", "ffn": "mlp"}
"""What a block's parts are called in the config and in the names of tensors."""


def block_configs(
    config: Any, blocks: Iterable[int], there: Container[SublayerId | None], ffn: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What the layout says of each block: which of its parts it lacks, and settings of an attention and an `ffn`."""
    heads = config.num_attention_heads // config.num_key_value_heads
    found = []
    for block in blocks:
        serves, computes = (SublayerId(block, kind) in there for kind in ("attention", "mlp"))
        own = ffn if computes else dict.fromkeys(ffn)
        attention = {"no_op": not serves, "n_heads_in_group": heads if serves else None}
        found.append({"attention": attention, "ffn": {"no_op": not computes, **own}})
    return found


def write_layout(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a config and the tensors that it says are there."""
    save_torch_state_dict({name: value.contiguous() for name, value in tensors.items()}, folder, max_shard_size=SHARD)
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder."""
    read: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        read |= load_state_dict_from_file(shard)
    return read


def require_same_layout(own: Mapping[str, Tensor], folder: Path) -> None:
    """Compare what is on disk with a model's own tensors; a ModelError says what differs.

    Nothing is missing, blocks are those of the config, and what was added around them (stubs, wider FFNs) is zero, but
    for the weights of norms.
    """
    read = read_tensors(folder)
    blocks = json.loads((folder / "config.json").read_text(encoding="utf-8"))["block_configs"]
    there = {
        f"{position}.{name}"
        for position, block in enumerate(blocks)
        for part, name in PARTS.items()
        if not block[part]["no_op"]
    }
    named = {".".join(name.split(".")[2:4]) for name in read if ".self_attn." in name or ".mlp." in name}
    wrong = [name for name, value in own.items() if name not in read or not _holds(read[name], value.cpu())]
    added = set(read) - set(own)
    if wrong or there != named or any(read[name].any() for name in added if "layernorm" not in name):
        raise ModelError(f"read back, the folder differs: {', '.join(wrong[:3]) or 'other blocks'}")


def _holds(read: Tensor, own: Tensor) -> bool:
    """Whether a tensor is another one, with zeros around it at most."""
    inner = read[tuple(slice(size) for size in own.shape)]
    return torch.equal(inner, own) and int(read.count_nonzero()) == int(own.count_nonzero())
