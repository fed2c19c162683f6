"""Changes for a while: everything is as before when the context ends, even after an exception."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from lit_prune.anatomy import Anatomy, Part, find_sublayers, language_model
from lit_prune.plan import SublayerId
from lit_prune.surgery.config import set_cache


@contextmanager
def mute(model: nn.Module, ids: Iterable[SublayerId], *, anatomy: Anatomy | None = None) -> Iterator[None]:
    """Run the model, perhaps wrapped by peft, without some of its sublayers, norms included, in a `with` block.

    `generate` works inside, with and without cache. `anatomy` is what `find_sublayers` says, where that is known.

    Raises:
        PlanError: One of the sublayers is not in the model.
    """
    root = language_model(model)
    anatomy = anatomy or find_sublayers(root)
    going = tuple(ids)
    taken = put_stubs(root, anatomy.parts(going))
    put_cache_back = set_cache(root, anatomy, going)
    try:
        yield
    finally:
        for parent, name, module in taken:
            setattr(parent, name, module)
        put_cache_back()


def put_stubs(model: nn.Module, parts: Iterable[Part]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Replace parts by what stands for them; returns `(parent, child name, original)` of all, to be put back."""
    taken = []
    for part in parts:
        parent_path, _, name = part.path.rpartition(".")
        parent = model.get_submodule(parent_path)
        taken.append((parent, name, getattr(parent, name)))
        setattr(parent, name, part.stub())
    return taken


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
