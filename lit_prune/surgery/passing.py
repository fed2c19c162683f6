"""Whether blocks that have lost both sublayers pass on what they get: asked of the blocks themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

NUM_TOKENS = 4


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients and compilation; every module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    # A compiled model would be compiled anew for every sublayer that is out.
    uncompiled = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        model.eval()
        with torch.no_grad(), uncompiled:
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def passing(model: Any, blocks: Sequence[nn.Module]) -> list[bool]:
    """Which of a model's blocks without attention and FFN are identities for the residual stream, to the last bit.

    A block may scale the stream, or hold parameters of its own beside it: it is none then, though nothing adds to it.
    The model runs on a few tokens; on the meta device, where there are no values, only parameters count.
    """
    bare = {id(block): next(block.parameters(), None) is None for block in blocks}
    if model.device.type == "meta" or not any(bare.values()):
        return [bare[id(block)] for block in blocks]
    same: dict[int, bool] = {}
    handles = [block.register_forward_pre_hook(_widen, with_kwargs=True) for block in blocks]

    def compare(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        before, after = _hidden(args, kwargs), output[0] if isinstance(output, tuple) else output
        same[id(block)] = torch.equal(after, before.to(after))

    handles += [block.register_forward_hook(compare, with_kwargs=True) for block in blocks]
    try:
        with evaluating(model):
            tokens = torch.arange(NUM_TOKENS, device=model.device)[None]
            model(input_ids=tokens % model.get_input_embeddings().weight.shape[0], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [bare[id(block)] and same[id(block)] for block in blocks]


def _hidden(args: Any, kwargs: Any) -> Tensor:
    return cast(Tensor, args[0] if args else kwargs["hidden_states"])


def _widen(_: nn.Module, args: Any, kwargs: Any) -> Any:
    """Other numbers than a few embeddings hold, so that a limit would show as well."""
    hidden = _hidden(args, kwargs)
    wide = hidden + 8 * torch.linspace(-1, 1, hidden.shape[-1]).to(hidden)
    return ((wide, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": wide})
