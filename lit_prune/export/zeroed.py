"""A stock model of the dense shape, in which what was removed computes zero: for tools that know no other shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.errors import ModelError
from lit_prune.export.card import Usage
from lit_prune.export.folder import finished_folder, require_logits, require_same, write_standard
from lit_prune.loading import autoload
from lit_prune.plan import PrunePlan
from lit_prune.surgery import stock_config, without_tombstones

NOTE = (
    "A stock model: whatever loads models of its kind loads it. **It is neither smaller nor faster than the dense "
    "one**: all weights of the removed sublayers are there, and zero."
)


def save_zeroed(
    model: PreTrainedModel,
    directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    plan: PrunePlan | None = None,
    verify: bool = True,
) -> Path:
    """Write a pruned model in the shape of a dense one, which saves nothing. Blocks that went whole stay away.

    Args:
        model: As for `save`.
        directory: Where it goes; must not exist or be empty.
        tokenizer: Written beside it.
        plan: Written beside it.
        verify: Compare its logits with the pruned model's, read it back and compare again.

    Raises:
        ModelError: As for `save`; or with zeros the model computes something else.
    """
    with finished_folder(model, directory, plan) as aside:
        filled = with_zeros(model)
        if verify:
            require_logits(model, filled)  # zeros may not hold; before anything is written
        place = f'{type(model).__name__}.from_pretrained("FOLDER")'
        how = Usage(f"from transformers import {type(model).__name__}\n\nmodel = {place}", NOTE)
        write_standard(filled, aside, tokenizer, plan, how)
        if verify:
            with autoload.teaching(False):
                read: Any = type(model).from_pretrained(aside, dtype=model.dtype)
            require_same(filled, read.to(model.device).eval())
    return Path(directory).expanduser()


def with_zeros(model: PreTrainedModel) -> PreTrainedModel:
    """A stock model in memory that computes what a pruned one does, at the dense one's price.

    Raises:
        ModelError: The weights do not fit the stock model.
    """
    stock: Any = type(model)
    device = model.device
    # Built for real, since some classes keep tables that are no buffers.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        twin = stock(stock_config(model)).to(device)
    for parameter in twin.parameters():
        parameter.data = torch.zeros_like(parameter, dtype=model.dtype)
    # Each in its own dtype: rotary tables are float32 beside weights of any.
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
    return twin.eval()  # type: ignore[no-any-return]
