"""The layout that vLLM serves: DeciLM, whose blocks may lack their attention or FFN.

Source: the model of `targets.DECILM` in vLLM. It computes as the types of `targets.SERVED_TYPES` do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_state_dict_from_file, save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.anatomy import Anatomy, find_sublayers
from lit_prune.errors import ModelError
from lit_prune.export.card import CARD_FILE, Usage, model_card
from lit_prune.export.folder import finished_folder, open_weights
from lit_prune.export.served import require_served
from lit_prune.export.targets import DECILM, DECILM_CODE, DECILM_CONFIG, SERVED_ACTIVATIONS, VLLM_POSITIONS
from lit_prune.files import write_text
from lit_prune.plan import PLAN_FILE, PrunePlan
from lit_prune.plan.prune_plan import SublayerId

CODE_FILE, SHARD = "configuration_decilm.py", "5GB"
NOTE = (
    "For vLLM alone, which builds blocks without attention or FFN from this layout. Its config comes as a file of a "
    "few lines, hence `trust_remote_code`."
)


def save_for_vllm(
    model: PreTrainedModel,
    directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    plan: PrunePlan | None = None,
    verify: bool = True,
) -> Path:
    """Write a pruned model in DeciLM's layout.

    Args:
        model: As for `save`; of `targets.SERVED_TYPES`, without sliding windows.
        directory: Where it goes; must not exist or be empty.
        tokenizer: Written beside it.
        plan: Written beside it.
        verify: Read it back and compare tensors and blocks. vLLM itself is not asked: it wants another transformers.

    Raises:
        ModelError: As for `save`; or vLLM cannot serve it, with the reason.
    """
    require_served(model, "vLLM's DeciLM", VLLM_POSITIONS)
    with finished_folder(model, directory, plan) as aside:
        anatomy = find_sublayers(model)
        stub = _needs_stub(anatomy)
        tensors = {name: value.contiguous() for name, value in _tensors(model, stub).items()}
        save_torch_state_dict(tensors, aside, max_shard_size=SHARD)
        write_text(aside / "config.json", json.dumps(_config(model, anatomy, stub), indent=2) + "\n")
        open_weights(aside)
        write_text(aside / CODE_FILE, DECILM_CODE)
        model.generation_config.save_pretrained(aside)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        if plan is not None:
            plan.save(aside / PLAN_FILE)
        served = 'from vllm import LLM\n\nmodel = LLM("FOLDER", trust_remote_code=True)'
        write_text(aside / CARD_FILE, model_card(model, plan, Usage(served, NOTE)))
        if verify:
            _require_same(model, aside)
    return Path(directory).expanduser()


def _needs_stub(anatomy: Anatomy) -> SublayerId | None:
    """The attention without which vLLM fails: it starts the residual stream with the first norm before an attention."""
    first = next((each.id for each in anatomy.sublayers), None)
    return SublayerId(first.block, "attention") if first is not None and first.kind == "mlp" else None


def _tensors(model: PreTrainedModel, stub: SublayerId | None) -> Mapping[str, Tensor]:
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    if stub is not None:
        anatomy, config = find_sublayers(model), model.config
        block = f"{anatomy.blocks_path}.{anatomy.position(stub.block)}"
        heads, head = config.num_attention_heads, head_size(model)
        rows = {"q": heads * head, "k": config.num_key_value_heads * head, "v": config.num_key_value_heads * head}
        like = tensors["model.embed_tokens.weight"]
        for name, number in rows.items():
            tensors[f"{block}.self_attn.{name}_proj.weight"] = like.new_zeros(number, config.hidden_size)
        tensors[f"{block}.self_attn.o_proj.weight"] = like.new_zeros(config.hidden_size, heads * head)
        tensors[f"{block}.input_layernorm.weight"] = like.new_ones(config.hidden_size)
        if config.attention_bias:
            for name, number in (*rows.items(), ("o", config.hidden_size)):
                tensors[f"{block}.self_attn.{name}_proj.bias"] = like.new_zeros(number)
    return tensors


def head_size(model: PreTrainedModel) -> int:
    """Numbers in a head."""
    config = model.config
    found: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return found


def _config(model: PreTrainedModel, anatomy: Anatomy, stub: SublayerId | None) -> dict[str, Any]:
    config = model.config
    data = {name: getattr(config, name) for name in DECILM_CONFIG if hasattr(config, name)}
    data["hidden_act"] = SERVED_ACTIVATIONS[0]  # under the one name that vLLM knows
    group = config.num_attention_heads // config.num_key_value_heads
    blocks = []
    for block in anatomy.blocks:
        attention, mlp = (SublayerId(block, kind) for kind in ("attention", "mlp"))
        serves = attention in anatomy or attention == stub
        ffn: dict[str, Any] = {"no_op": False, "intermediate_size": config.intermediate_size}
        ffn["hidden_act"] = data["hidden_act"]
        blocks.append(
            {
                "attention": {"no_op": not serves, "n_heads_in_group": group if serves else None},
                "ffn": ffn if mlp in anatomy else {"no_op": True, "intermediate_size": None, "hidden_act": None},
            }
        )
    return {
        **DECILM,
        "auto_map": {"AutoConfig": f"{CODE_FILE.removesuffix('.py')}.DeciLMConfig"},
        "dtype": str(model.dtype).removeprefix("torch."),
        **data,
        "block_configs": blocks,
    }


def _require_same(model: PreTrainedModel, folder: Path) -> None:
    """What is on disk, laid over the model it came from: nothing but the stub is left over, nothing is missing."""
    read: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        read |= load_state_dict_from_file(shard)
    own = dict(model.state_dict())
    added = {name for name in read if name not in own}
    if model.config.tie_word_embeddings:
        own.pop("lm_head.weight", None)
    blocks = json.loads((folder / "config.json").read_text(encoding="utf-8"))["block_configs"]
    parts = {"attention": "self_attn", "ffn": "mlp"}
    there = {
        f"{position}.{parts[part]}"
        for position, block in enumerate(blocks)
        for part in parts
        if not block[part]["no_op"]
    }
    named = {".".join(name.split(".")[2:4]) for name in read if ".self_attn." in name or ".mlp." in name}
    wrong = [name for name, value in own.items() if name not in read or not torch.equal(read[name], value.cpu())]
    if wrong or there != named or any(read[name].any() for name in added if "layernorm" not in name):
        raise ModelError(f"read back, the folder for vLLM differs: {', '.join(wrong[:3]) or 'other blocks'}")
