"""What modules of a model are called with and give, and which linear layer writes it into the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from lit_prune.anatomy import Sublayer, find_sublayers, language_model
from lit_prune.plan import SublayerId
from lit_prune.surgery.mute import evaluating


def output_projections(model: nn.Module) -> dict[SublayerId, str]:
    """Find the paths of linear layers whose output is a sublayer's own, to the last bit, by what they put out.

    Experts have none, nor has an FFN that norms or gates what its last layer puts out: they are left out. Of a layer
    with adapters, the wrapper is found. The model has values, so it is not on the meta device.
    """
    root = language_model(model)
    found: dict[SublayerId, str] = {}
    with ExitStack() as hooks, evaluating(root):
        for sublayer in find_sublayers(root).sublayers:
            for hook in _watch(root, sublayer, found):
                hooks.enter_context(hook)
        run_few_tokens(root)
    return found


def run_few_tokens(model: Any) -> None:
    """Run a model of transformers on a few tokens, without a cache."""
    tokens = torch.arange(4, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    model(input_ids=tokens, use_cache=False)


def added_to_stream(sublayer: Sublayer, args: Any, kwargs: Any, output: Any) -> Tensor:
    """What a sublayer adds, [batch * seq, hidden], of what its module was called with and returned."""
    tensor = first_tensor(output)
    if sublayer.residual is not None:
        tensor = tensor - sublayer.residual.pick(args[1:], kwargs)
    return tensor.flatten(0, -2)


def hidden_states(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states among the arguments that a module was called with."""
    return cast(Tensor, args[0] if args else kwargs["hidden_states"])


def first_tensor(output: Any) -> Tensor:
    """The hidden states in what a module returned."""
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix; peft's wrapper around such a layer is one."""
    inner: Callable[[], nn.Module] = getattr(module, "get_base_layer", lambda: module)
    return isinstance(inner(), nn.Linear | Conv1D)


def _watch(model: Any, sublayer: Sublayer, found: dict[SublayerId, str]) -> list[RemovableHandle]:
    outputs: dict[str, Tensor] = {}
    module = model.get_submodule(sublayer.path)

    def keep(path: str, _: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[path] = output.clone()  # experts are added in place to what a shared one put out

    def compare(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        total = first_tensor(output)
        for path, own in outputs.items():
            if own.numel() != total.numel():
                continue
            written = own.reshape(total.shape)
            if sublayer.residual is not None:
                written = written + sublayer.residual.pick(args[1:], kwargs)
            if torch.equal(written, total):
                # The wrapper's path is shorter than that of what it wraps.
                found[sublayer.id] = min(path, found.get(sublayer.id, path), key=len)

    # Where the sublayer is one linear layer, its output is kept first.
    kept = [
        child.register_forward_hook(partial(keep, ".".join(filter(None, (sublayer.path, name)))))
        for name, child in module.named_modules()
        if is_linear(child)
    ]
    return [*kept, module.register_forward_hook(compare, with_kwargs=True)]
