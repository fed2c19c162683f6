"""Whether the reading of a model's blocks is right, asked of the model itself on a few tokens."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lit_prune.anatomy import Anatomy, Sublayer, find_sublayers, language_model
from lit_prune.errors import AnatomyError
from lit_prune.surgery.mute import evaluating, mute
from lit_prune.surgery.outputs import first_tensor, run_few_tokens


def require_understood(model: nn.Module) -> None:
    """Check on a few tokens that muting a sublayer is the same as zeroing what it adds, in every kind of block.

    A guess from names could be wrong for a model that nobody has tried; this finds out before anything is removed.
    Models on the meta device have no values to compare, and pass.

    Raises:
        AnatomyError: A block without a sublayer gives something else than the block with that output zeroed.
    """
    root = language_model(model)
    if root.device.type == "meta":
        return
    anatomy = find_sublayers(root)
    calls: dict[nn.Module, tuple[Any, Any]] = {}

    def record(block: nn.Module, args: Any, kwargs: Any) -> None:
        calls.setdefault(block, (args, kwargs))

    chosen = _one_of_each_kind(root, anatomy)
    with ExitStack() as hooks, evaluating(root):
        for block in chosen:
            hooks.enter_context(block.register_forward_pre_hook(record, with_kwargs=True))
        run_few_tokens(root)
        for block, number in chosen.items():
            for sublayer in anatomy.sublayers:
                if sublayer.id.block == number:
                    _compare(root, anatomy, block, sublayer, *calls[block])


def _one_of_each_kind(model: nn.Module, anatomy: Anatomy) -> dict[nn.Module, int]:
    """The first block of every kind (the classes of its children, and what is left of it) with its number."""
    kinds: dict[Any, tuple[nn.Module, int]] = {}
    for number, block in zip(anatomy.blocks, anatomy.block_list(model), strict=True):
        kinds.setdefault(tuple((name, type(child)) for name, child in block.named_children()), (block, number))
    return dict(kinds.values())


def _compare(
    model: nn.Module, anatomy: Anatomy, block: nn.Module, sublayer: Sublayer, args: Any, kwargs: Mapping[str, Any]
) -> None:
    try:
        with _zeroed(model.get_submodule(sublayer.output), sublayer):
            expected = first_tensor(block(*args, **kwargs))
        if not expected.isfinite().all():
            return  # damaged weights, which measuring the loss reports
        with mute(model, [sublayer.id], anatomy=anatomy):
            found = first_tensor(block(*args, **kwargs))
        error = float((expected.float() - found.float()).abs().max() / expected.float().abs().max().clamp(min=1e-30))
        # Equal to the last bit wherever it was tried; the margin is for kernels that sum in another order.
        if error <= 1e-3:
            return
        trouble = f"the outputs differ by {error:.2g}"
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as failure:
        trouble = repr(failure)
    raise AnatomyError(
        f"{sublayer.path} of this {anatomy.model_type} model was read as {sublayer.form!r}, and the block without "
        f"it is not the block with its output zeroed: {trouble}. Describe the blocks with a layout: the "
        "reference page of architectures says how"
    )


def _zeroed(module: nn.Module, sublayer: Sublayer) -> RemovableHandle:
    def zero(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        tensor = first_tensor(output)
        nothing = sublayer.residual.pick(args[1:], kwargs) if sublayer.residual else torch.zeros_like(tensor)
        return (nothing, *output[1:]) if isinstance(output, tuple) else nothing

    return module.register_forward_hook(zero, with_kwargs=True)
