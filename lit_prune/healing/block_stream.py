"""What goes on in one decoder block while it runs: its stream, and what each sublayer adds to that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.anatomy import Anatomy, Sublayer
from lit_prune.errors import ModelError
from lit_prune.plan import SublayerId
from lit_prune.surgery import added_to_stream, evaluating, first_tensor, hidden_states, run_few_tokens

ROUTED = (".experts", ".weights")
"""Ends of the names under which there are the numbers of a token's experts, and their weights."""
MOST_FROM_ELSEWHERE = 0.02
"""The share of what a block adds to the stream that its sublayers need not account for: rounding."""


@dataclass
class BlockStream:
    """What hooks have seen of one run of one block; copies, as some blocks add in place."""

    stream: Tensor | None = None
    added: dict[SublayerId, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    put_out: dict[str, Tensor] = field(default_factory=dict)

    def enter(self, _: Any, args: Any, kwargs: Any) -> None:
        """Before the block."""
        self.stream = _copied(hidden_states(args, kwargs))

    def add(self, sublayer: Sublayer, _: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Behind what joins the stream."""
        self.added[sublayer.id] = _copied(added_to_stream(sublayer, args, kwargs, output))

    def see(self, path: str, _: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Behind a watched module."""
        assert self.stream is not None
        for seen, tensor in ((self.given, hidden_states(args, kwargs)), (self.put_out, first_tensor(output))):
            seen[path] = _copied(tensor).reshape(*self.stream.shape[:-1], tensor.shape[-1])
        # Experts are given the numbers and weights of those that each token is for, too.
        for end, tensor in zip(ROUTED, args[1:3], strict=False):
            self.given[f"{path}{end}"] = _copied(tensor).reshape(*self.stream.shape[:-1], tensor.shape[-1])

    def behind(self, last: SublayerId, scale: float) -> Tensor:
        """The stream behind a sublayer, float32 [batch, seq, hidden]."""
        assert self.stream is not None
        written = [added for sublayer, added in self.added.items() if sublayer <= last]
        return self.stream + scale * torch.stack(written).sum(dim=0).view_as(self.stream)


@contextmanager
def watched_block(
    model: nn.Module, anatomy: Anatomy, position: int, paths: Sequence[str] = ()
) -> Iterator[BlockStream]:
    """See what goes on in a block, and in modules of it that are called once, in a `with` block."""
    found = BlockStream()
    block = anatomy.block_list(model)[position]
    with ExitStack() as hooks:
        hooks.enter_context(block.register_forward_pre_hook(found.enter, with_kwargs=True))
        for sublayer in anatomy.sublayers:
            if anatomy.position(sublayer.id.block) == position:
                module = model.get_submodule(sublayer.output)
                hooks.enter_context(module.register_forward_hook(partial(found.add, sublayer), with_kwargs=True))
        for path in paths:
            module = model.get_submodule(path)
            hooks.enter_context(module.register_forward_hook(partial(found.see, path), with_kwargs=True))
        yield found


def residual_scales(model: nn.Module, anatomy: Anatomy) -> list[float]:
    """What each block multiplies the outputs of its sublayers by before it adds them to the stream: 1 in most models.

    Raises:
        ModelError: What a block adds to its input is something else.
    """
    ends: list[Tensor] = []
    with ExitStack() as hooks, evaluating(model):
        founds = [hooks.enter_context(watched_block(model, anatomy, number)) for number in range(len(anatomy.blocks))]
        for block in anatomy.block_list(model):
            hook = block.register_forward_hook(lambda _, __, output: ends.append(_copied(first_tensor(output))))
            hooks.enter_context(hook)
        run_few_tokens(model)
    precision = torch.finfo(next(model.parameters()).dtype).eps
    return [
        _scale(found, end, precision, f"block {number} of this {anatomy.model_type} model")
        for number, found, end in zip(anatomy.blocks, founds, ends, strict=True)
    ]


def _scale(found: BlockStream, behind: Tensor, precision: float, block: str) -> float:
    if not found.added:
        return 1.0
    assert found.stream is not None
    written = torch.stack([*found.added.values()]).sum(dim=0).view_as(found.stream)
    change = behind - found.stream
    scale, rest = multiple(change, written)
    rounding = 2 * precision * float(behind.norm())
    if rest - rounding > MOST_FROM_ELSEWHERE * float(change.norm()):
        raise ModelError(
            f"{block} does not add the outputs of its sublayers to its input, each times the same number, so nothing "
            "tells what they should have put out"
        )
    return 1.0 if abs(scale - 1) < MOST_FROM_ELSEWHERE else scale


def multiple(tensor: Tensor, of: Tensor) -> tuple[float, float]:
    """The multiple of one tensor that is nearest to another, and the length of what is left of that."""
    factor = float((tensor * of).sum() / of.square().sum().clamp(min=torch.finfo(torch.float32).tiny))
    return factor, float((tensor - factor * of).norm())


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True)
