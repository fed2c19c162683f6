"""The layout that mlx-lm reads as `targets.MLX_TYPE`: blocks may lack their attention or FFN.

Source: the model of that name in mlx_lm. It wants heads that share out the width, at least one attention, and FFNs of a
whole number of 256 rows; rows of zeros fill them up.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import ModelError
from lit_prune.export.card import Usage
from lit_prune.export.decilm import block_configs, require_same_layout, write_layout
from lit_prune.export.kin import as_llama, head_size
from lit_prune.export.llama_cpp import LIKELIEST, TOLERANCES
from lit_prune.export.served import ELSEWHERE, require_served
from lit_prune.export.targets import DECILM_CONFIG, MLX_TYPE, POSITIONS
from lit_prune.surgery import evaluating

ROWS = 256
"""FFNs have a whole number of these."""
DEFAULT = {"rope_type": "default"}
USAGE = Usage(
    'from mlx_lm import generate, load\n\nmodel, tokenizer = load("FOLDER")',
    "For mlx-lm alone, which builds blocks without attention or FFN from this layout; `mlx_lm.convert` quantises it.",
    library="mlx",
)


def is_installed() -> bool:
    """Whether mlx-lm can be asked."""
    return importlib.util.find_spec("mlx_lm") is not None


def require_mlx(model: PreTrainedModel) -> None:
    """Refuse with a ModelError a model that mlx-lm computes otherwise."""
    require_served(model, f"mlx-lm's {MLX_TYPE}", POSITIONS)
    config = model.config
    if (head := head_size(config)) * config.num_attention_heads != config.hidden_size:
        raise ModelError(
            f"mlx-lm's {MLX_TYPE} has heads of {config.hidden_size} / {config.num_attention_heads} numbers, and this "
            f"model's have {head}; {ELSEWHERE}"
        )
    if not any(sublayer.kind == "attention" for sublayer in find_sublayers(model).ids):
        raise ModelError(f"mlx-lm's {MLX_TYPE} wants one attention at least, and this model has none; {ELSEWHERE}")


def write(model: PreTrainedModel, folder: Path, verify: bool) -> tuple[PreTrainedModel, Usage]:
    """Write a pruned model for mlx-lm, and compare it with what is on disk and, if installed, what mlx-lm computes."""
    anatomy = find_sublayers(model)
    config, own = as_llama(model)
    rope = config.rope_parameters
    settings = {
        "model_type": MLX_TYPE,
        "dtype": str(model.dtype).removeprefix("torch."),
        **{name: getattr(config, name) for name in DECILM_CONFIG if name not in ("rope_parameters", "head_dim")},
        "rope_theta": rope["rope_theta"],
        # mlx-lm looks at `type` first. The tokenizer's loader, transformers, would want more of a config that it does
        # not know if `rope_type` said the same.
        "rope_scaling": None if rope["rope_type"] == "default" else {**rope, "type": rope["rope_type"], **DEFAULT},
        "block_configs": block_configs(config, anatomy.blocks, anatomy.ids, {"ffn_mult": _factor(config)}),
    }
    write_layout(folder, settings, {name: _filled_up(name, value) for name, value in own.items()})
    model.generation_config.save_pretrained(folder)
    if verify:
        require_same_layout(own, folder)
        if is_installed():
            _require_same_in_mlx(model, folder)
    return model, USAGE


def _filled_up(name: str, value: Tensor) -> Tensor:
    if ".mlp." not in name or name.endswith("down_proj.bias"):
        return value
    down = name.endswith("down_proj.weight")
    lacking = -value.shape[1 if down else 0] % ROWS
    return pad(value, (0, lacking) if down or value.dim() == 1 else (0, 0, 0, lacking))


def _factor(config: Any) -> float:
    """How wide an FFN is, as mlx-lm reads it: it takes 2 / 3 of this times the width, and rounds up."""
    rows = config.intermediate_size + -config.intermediate_size % ROWS
    return float(1.5 * (rows - ROWS / 2) / config.hidden_size)  # half a step below is safe from how it rounds


def _require_same_in_mlx(model: PreTrainedModel, folder: Path) -> None:
    """Compare log-probabilities of the likeliest tokens behind some text by transformers and by mlx-lm."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    tokens = torch.randint(model.config.vocab_size, (1, 16), generator=torch.Generator().manual_seed(0))
    with evaluating(model):
        ours = model(input_ids=tokens.to(model.device), use_cache=False).logits[0].float().cpu().log_softmax(-1)
    try:
        runtime, _ = load_model(folder)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"mlx-lm does not read this folder: {error}") from error
    theirs = torch.tensor(runtime(mx.array(tokens.tolist()))[0].astype(mx.float32).tolist()).log_softmax(-1)
    likeliest = ours.topk(min(LIKELIEST, ours.shape[-1])).indices
    worst = float((ours - theirs).gather(-1, likeliest).abs().max())
    if not worst <= (allowed := TOLERANCES[model.dtype == torch.float32]):
        raise ModelError(
            f"mlx-lm reads the folder otherwise: log-probabilities of the likeliest tokens differ by {worst:.3g}, "
            f"{allowed:g} is allowed"
        )
