"""The layout that vLLM serves: DeciLM, whose blocks may lack their attention or FFN.

Source: the model of `targets.DECILM` in vLLM. It computes as the types of `targets.KIN` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers
from lit_prune.export.card import Usage
from lit_prune.export.decilm import block_configs, require_same_layout, write_layout
from lit_prune.export.kin import as_llama
from lit_prune.export.served import require_served
from lit_prune.export.targets import DECILM, DECILM_CODE, DECILM_CONFIG, EMBEDDING, KIN, VLLM_POSITIONS
from lit_prune.export.vllm_modelled import require_modelled
from lit_prune.export.vllm_modelled import write as write_modelled
from lit_prune.files import write_text
from lit_prune.plan import SublayerId

CODE_FILE = "configuration_decilm.py"
USAGE = Usage(
    'from vllm import LLM\n\nmodel = LLM("FOLDER", trust_remote_code=True)',
    "For vLLM alone, which builds blocks without attention or FFN from this layout. Its config comes as a file of a "
    "few lines, hence `trust_remote_code`.",
    library="vllm",
)
require_decilm = partial(require_served, target="vLLM's DeciLM", positions=VLLM_POSITIONS)


def require_serving(model: PreTrainedModel) -> None:
    """Refuse with a ModelError a model that vLLM is not known to run."""
    (require_decilm if model.config.model_type in KIN else require_modelled)(model)


def write(model: PreTrainedModel, folder: Path, verify: bool) -> tuple[PreTrainedModel, Usage]:
    """Write a pruned model in DeciLM's layout or, of other arithmetic than that, with a file that builds it."""
    return (write_decilm if model.config.model_type in KIN else write_modelled)(model, folder, verify)


def write_decilm(model: PreTrainedModel, folder: Path, verify: bool) -> tuple[PreTrainedModel, Usage]:
    """Write a pruned model in DeciLM's layout, and compare tensors and blocks with what is on disk.

    vLLM itself is not asked: it wants another transformers.
    """
    anatomy = find_sublayers(model)
    config, own = as_llama(model)
    # vLLM starts the residual stream with the first norm before an attention, so the first sublayer must be one.
    first = next(iter(anatomy.ids), None)
    stub = SublayerId(first.block, "attention") if first is not None and first.kind == "mlp" else None
    path = None if stub is None else f"{anatomy.blocks_path}.{anatomy.position(stub.block)}"
    ffn = {"intermediate_size": config.intermediate_size, "hidden_act": config.hidden_act}
    settings = {
        **DECILM,
        "auto_map": {"AutoConfig": f"{CODE_FILE.removesuffix('.py')}.DeciLMConfig"},
        "dtype": str(model.dtype).removeprefix("torch."),
        **{name: getattr(config, name) for name in DECILM_CONFIG},
        "block_configs": block_configs(config, anatomy.blocks, {*anatomy.ids, stub}, ffn),
    }
    write_layout(folder, settings, _tensors(own, config, path))
    write_text(folder / CODE_FILE, DECILM_CODE)
    model.generation_config.save_pretrained(folder)
    if verify:
        require_same_layout(own, folder)
    return model, USAGE


def _tensors(own: Mapping[str, Tensor], config: Any, stub: str | None) -> dict[str, Tensor]:
    """All tensors: the model's own and, in the block of this path, an attention that writes zeros."""
    tensors = {**own}
    if stub is None:
        return tensors
    width, like = config.hidden_size, own[EMBEDDING]
    queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    for name, shape in {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}.items():
        tensors[f"{stub}.self_attn.{name}_proj.weight"] = like.new_zeros(shape)
        if config.attention_bias:
            tensors[f"{stub}.self_attn.{name}_proj.bias"] = like.new_zeros(shape[0])
    tensors[f"{stub}.input_layernorm.weight"] = torch.ones_like(like[0])
    return tensors
