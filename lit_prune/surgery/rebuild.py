"""Sublayers built anew where they were removed, for the weights of a checkpoint from before the removal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_prune.anatomy import Record, decoder_config, find_sublayers, language_model
from lit_prune.errors import ModelError
from lit_prune.plan import SublayerId
from lit_prune.surgery.config import record_removal, stock_config


def put_back(model: nn.Module, ids: Iterable[SublayerId]) -> None:
    """Build removed sublayers and their norms again, in place, as the dense model has them.

    Args:
        model: A pruned model, without adapters, and not sharded. Its other weights stay as they are.
        ids: Addresses of sublayers that it has lost. Their weights are drawn at random, until others are loaded.

    Raises:
        ModelError: Whole blocks were closed up, so that nothing tells what they were.
    """
    root: Any = language_model(model)
    wanted = set(ids)
    if Record.of(decoder_config(root)).blocks is not None:
        raise ModelError("whole blocks are out of the stack, and cannot be built again; start from the dense model")
    config = stock_config(root)
    replace(Record.of(decoder_config(root)), removed=(), biases={}).write(config.get_text_config(decoder=True))
    with torch.device("meta"):
        dense = type(root)(config)
    anatomy, gone = find_sublayers(dense), set(find_sublayers(root).removed)
    staying = {part.path for part in anatomy.parts(gone - wanted)}
    for part in anatomy.parts(gone):
        if part.path not in staying:
            root.set_submodule(part.path, _filled(root, part.path, dense.get_submodule(part.path)))
    _use_cache_again(root)
    record_removal(root, find_sublayers(root))


def _filled(root: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """A module with values: transformers' own first ones, for tables that no checkpoint has too."""
    like = next(root.parameters())
    module = module.to_empty(device=like.device).to(like.dtype).train(root.training)
    around = (holder for name, holder in root.named_modules() if not name or path.startswith(f"{name}."))
    *_, owner = (holder for holder in around if isinstance(holder, PreTrainedModel))
    with torch.no_grad(), torch.random.fork_rng():
        for part in module.modules():
            owner._init_weights(part)  # type: ignore[no-untyped-call]
    return module


def _use_cache_again(root: Any) -> None:
    # Without any attention there was nothing to cache.
    if all(sublayer.kind != "attention" for sublayer in find_sublayers(root).ids):
        return
    for own in (decoder_config(root), getattr(root, "generation_config", None)):
        if own is not None and getattr(own, "use_cache", True) is False:
            own.use_cache = True
