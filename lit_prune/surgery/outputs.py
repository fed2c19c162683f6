"""Which linear layer each sublayer writes into the residual stream with: found by what comes out, not by names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lit_prune.anatomy import Sublayer, find_sublayers, language_model
from lit_prune.plan.prune_plan import SublayerId
from lit_prune.surgery.mute import evaluating

NUM_TOKENS = 4


def output_projections(model: nn.Module) -> dict[SublayerId, str]:
    """The module path of the linear layer whose output is the sublayer's own, to the last bit.

    Experts have none, nor has an FFN that norms or gates what its last layer puts out: they are left out.

    Args:
        model: A causal language model with values, perhaps pruned or with adapters, of which the wrapper is found.
    """
    root = language_model(model)
    anatomy = find_sublayers(root)
    found: dict[SublayerId, str] = {}
    handles: list[Any] = []
    try:
        for each in anatomy.sublayers:
            handles += _watch(root, each, found)
        with evaluating(root):
            tokens = torch.arange(NUM_TOKENS, device=root.device)[None] % root.get_input_embeddings().weight.shape[0]
            root(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def added_to_stream(sublayer: Sublayer, args: Any, kwargs: Any, output: Any) -> Tensor:
    """What a sublayer adds, [batch * seq, hidden], of what its module was called with and returned."""
    tensor = first_tensor(output)
    if sublayer.residual is not None:
        tensor = tensor - sublayer.residual.pick(args[1:], kwargs)
    return tensor.flatten(0, -2)


def first_tensor(output: Any) -> Tensor:
    """The hidden states in what a module returned."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def is_linear(module: nn.Module) -> bool:
    """Whether it multiplies by a matrix; peft's wrapper around such a layer is one."""
    inner: Any = getattr(module, "get_base_layer", lambda: module)()
    return isinstance(inner, nn.Linear | Conv1D)


def _watch(model: Any, sublayer: Sublayer, found: dict[SublayerId, str]) -> list[Any]:
    outputs: dict[str, Tensor] = {}
    module = model.get_submodule(sublayer.path)

    def remember(path: str) -> Any:
        # A copy, since experts are added in place to what a shared one put out.
        return lambda _, __, output: outputs.__setitem__(path, output.clone()) if isinstance(output, Tensor) else None

    def compare(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        total = first_tensor(output)
        residual = None if sublayer.residual is None else sublayer.residual.pick(args[1:], kwargs)
        for path, each in outputs.items():
            written = each.reshape(total.shape) if each.numel() == total.numel() else None
            if written is not None and torch.equal(written if residual is None else written + residual, total):
                # Of a wrapper and what it wraps, the wrapper: its path is the shorter one.
                found[sublayer.id] = min(path, found.get(sublayer.id, path), key=len)

    linear = [
        (".".join(filter(None, (sublayer.path, name))), each)
        for name, each in module.named_modules()
        if is_linear(each)
    ]
    # Where the sublayer is one linear layer, its output is remembered first.
    handles = [each.register_forward_hook(remember(path)) for path, each in linear]
    return [*handles, module.register_forward_hook(compare, with_kwargs=True)]
