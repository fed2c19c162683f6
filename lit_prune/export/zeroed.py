"""A stock model of the dense shape, in which what was removed computes zero: for tools that know no other shape.

It saves nothing. Blocks that went whole stay away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from lit_prune.errors import ModelError
from lit_prune.export.card import Usage, usage_by
from lit_prune.export.folder import require_logits, require_same
from lit_prune.loading import autoload
from lit_prune.surgery import stock_config, without_tombstones

NOTE = (
    "A stock model: whatever loads models of its kind loads it. **It is neither smaller nor faster than the dense "
    "one**: all weights of the removed sublayers are there, and zero."
)


def write(model: PreTrainedModel, folder: Path, verify: bool) -> tuple[PreTrainedModel, Usage]:
    """Write a pruned model in the shape of a dense one, if zeros hold, and compare it with what transformers reads."""
    filled = with_zeros(model)
    if verify:
        require_logits(model, filled)  # zeros may not hold; before anything is written
    filled.save_pretrained(folder)
    if verify:
        with autoload.teaching(False):
            read = cast(Any, type(model)).from_pretrained(folder, dtype=model.dtype)
        require_same(filled, read.to(model.device).eval())
    return filled, usage_by(type(model).__name__, NOTE)


def with_zeros(model: PreTrainedModel) -> PreTrainedModel:
    """A stock model in memory that computes what a pruned one does, at the dense one's price."""
    stock, device = cast(Any, type(model)), model.device
    # Built for real, since some classes keep tables that are no buffers.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        twin = stock(stock_config(model)).to(device)
    for parameter in twin.parameters():
        parameter.data = torch.zeros_like(parameter, dtype=model.dtype)
    # Buffers keep their own dtypes: rotary tables are float32 beside weights of any.
    own = dict(model.named_buffers())
    for name, buffer in twin.named_buffers():
        if name in own:
            buffer.data = own[name].clone()
    with without_tombstones(model):
        unfit = twin.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    if unfit:
        raise ModelError(f"the stock {stock.__name__} has no place for {', '.join(unfit[:3])} ({len(unfit)})")
    twin.tie_weights()
    twin.generation_config = model.generation_config
    return cast(PreTrainedModel, twin.eval())
