"""The layout that vLLM serves: DeciLM, whose blocks may lack their attention or FFN.

Source: the model of `targets.DECILM` in vLLM. It computes as the types of `targets.SERVED_TYPES` do.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_state_dict_from_file, save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import ModelError
from lit_prune.export.card import Usage
from lit_prune.export.served import head_size, require_served
from lit_prune.export.targets import DECILM, DECILM_CODE, DECILM_CONFIG, SERVED_ACTIVATIONS, VLLM_POSITIONS
from lit_prune.files import write_text
from lit_prune.plan import SublayerId

CODE_FILE, SHARD = "configuration_decilm.py", "5GB"
USAGE = Usage(
    'from vllm import LLM\n\nmodel = LLM("FOLDER", trust_remote_code=True)',
    "For vLLM alone, which builds blocks without attention or FFN from this layout. Its config comes as a file of a "
    "few lines, hence `trust_remote_code`.",
)
PARTS = {"attention": "self_attn", "ffn": "mlp"}
"""What a block's parts are called in the config and in the names of tensors."""
require_serving = partial(require_served, target="vLLM's DeciLM", positions=VLLM_POSITIONS)


def write(model: PreTrainedModel, folder: Path, verify: bool) -> tuple[PreTrainedModel, Usage]:
    """Write a pruned model in DeciLM's layout, and compare tensors and blocks with what is on disk.

    vLLM itself is not asked: it wants another transformers.
    """
    anatomy = find_sublayers(model)
    # vLLM starts the residual stream with the first norm before an attention, so the first sublayer must be one.
    first = next(iter(anatomy.ids), None)
    stub = SublayerId(first.block, "attention") if first is not None and first.kind == "mlp" else None
    tensors = {name: value.contiguous() for name, value in _tensors(model, stub).items()}
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD)
    write_text(
        folder / "config.json", json.dumps(_config(model, anatomy.blocks, {*anatomy.ids, stub}), indent=2) + "\n"
    )
    write_text(folder / CODE_FILE, DECILM_CODE)
    model.generation_config.save_pretrained(folder)
    if verify:
        _require_same(model, folder)
    return model, USAGE


def _own_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    tied = ("lm_head.weight",) if model.config.tie_word_embeddings else ()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _tensors(model: PreTrainedModel, stub: SublayerId | None) -> dict[str, Tensor]:
    tensors = _own_tensors(model)
    if stub is None:
        return tensors
    anatomy, config, head = find_sublayers(model), model.config, head_size(model)
    block = f"{anatomy.blocks_path}.{anatomy.position(stub.block)}"
    width, queries, keys = config.hidden_size, config.num_attention_heads * head, config.num_key_value_heads * head
    like = tensors["model.embed_tokens.weight"]
    for name, shape in {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}.items():
        tensors[f"{block}.self_attn.{name}_proj.weight"] = like.new_zeros(shape)
        if config.attention_bias:
            tensors[f"{block}.self_attn.{name}_proj.bias"] = like.new_zeros(shape[0])
    tensors[f"{block}.input_layernorm.weight"] = like.new_ones(width)
    return tensors


def _config(model: PreTrainedModel, blocks: Iterable[int], there: Container[SublayerId | None]) -> dict[str, Any]:
    config = model.config
    return {
        **DECILM,
        "auto_map": {"AutoConfig": f"{CODE_FILE.removesuffix('.py')}.DeciLMConfig"},
        "dtype": str(model.dtype).removeprefix("torch."),
        **{name: getattr(config, name) for name in DECILM_CONFIG if hasattr(config, name)},
        "hidden_act": SERVED_ACTIVATIONS[0],  # under the one name that vLLM knows
        "block_configs": [_block_config(block, config, there) for block in blocks],
    }


def _block_config(block: int, config: Any, there: Container[SublayerId | None]) -> dict[str, Any]:
    serves, computes = (SublayerId(block, kind) in there for kind in ("attention", "mlp"))
    heads = config.num_attention_heads // config.num_key_value_heads
    return {
        "attention": {"no_op": not serves, "n_heads_in_group": heads if serves else None},
        "ffn": {
            "no_op": not computes,
            "intermediate_size": config.intermediate_size if computes else None,
            "hidden_act": SERVED_ACTIVATIONS[0] if computes else None,
        },
    }


def _require_same(model: PreTrainedModel, folder: Path) -> None:
    """Compare what is on disk with the model: nothing but the stub is left over, nothing is missing."""
    read: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        read |= load_state_dict_from_file(shard)
    added = set(read) - set(model.state_dict())
    blocks = json.loads((folder / "config.json").read_text(encoding="utf-8"))["block_configs"]
    there = {
        f"{position}.{name}"
        for position, block in enumerate(blocks)
        for part, name in PARTS.items()
        if not block[part]["no_op"]
    }
    named = {".".join(name.split(".")[2:4]) for name in read if ".self_attn." in name or ".mlp." in name}
    own = _own_tensors(model).items()
    wrong = [name for name, value in own if name not in read or not torch.equal(read[name], value.cpu())]
    if wrong or there != named or any(read[name].any() for name in added if "layernorm" not in name):
        raise ModelError(f"read back, the folder for vLLM differs: {', '.join(wrong[:3]) or 'other blocks'}")
