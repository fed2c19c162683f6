"""Sublayers taken out for a while: everything is as before when the context ends, even after an exception."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lit_prune.anatomy import Anatomy, AttentionStub, MlpStub, Sublayer, find_sublayers, language_model
from lit_prune.plan import SublayerId
from lit_prune.surgery.config import sharing_modes


@contextmanager
def mute(model: nn.Module, ids: Iterable[SublayerId], *, anatomy: Anatomy | None = None) -> Iterator[None]:
    """Run the model without some of its sublayers, norms included, in a `with` block.

    `generate` works inside, with and without cache.

    Args:
        model: A causal language model, perhaps wrapped by peft.
        ids: Sublayers that are present.
        anatomy: What `find_sublayers` says of the model, where the caller knows it already.

    Raises:
        PlanError: One of them is not in the model.
    """
    root = language_model(model)
    anatomy = anatomy or find_sublayers(root)
    sublayers = [anatomy[each] for each in ids]
    taken: list[tuple[nn.Module, str, nn.Module]] = []
    config = root.config.get_text_config(decoder=True)
    before = config.__dict__.get("kv_sharing_modes", _ABSENT)
    try:
        for sublayer in sublayers:
            taken += put_stubs(root, sublayer)
        config.kv_sharing_modes = sharing_modes(anatomy, [each.id for each in sublayers])
        yield
    finally:
        for parent, name, module in reversed(taken):
            setattr(parent, name, module)
        if before is _ABSENT:
            config.__dict__.pop("kv_sharing_modes", None)
        else:
            config.kv_sharing_modes = before


_ABSENT: Any = object()


def put_stubs(model: nn.Module, sublayer: Sublayer) -> list[tuple[nn.Module, str, nn.Module]]:
    """Replace the parts of a sublayer; returns `(parent, child name, original)` of each, for putting them back."""
    taken = []
    for part in sublayer.parts:
        parent_path, _, name = part.path.rpartition(".")
        parent = model.get_submodule(parent_path)
        taken.append((parent, name, getattr(parent, name)))
        setattr(parent, name, _stub(part.role))
    return taken


def _stub(role: str) -> nn.Module:
    if role == "attention":
        return AttentionStub()
    return nn.Identity() if role == "identity" else MlpStub(as_tuple=role == "mlp_tuple")
