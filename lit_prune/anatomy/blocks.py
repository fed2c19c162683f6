"""One decoder block: which of its children are attention, FFN and norms, and what takes their place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from lit_prune.anatomy.layouts import EXPERTS_PER_TOKEN, LAYOUTS, Layout
from lit_prune.anatomy.parameters import count_parameters, own_parameters
from lit_prune.anatomy.stubs import ResidualArgument, SublayerStub
from lit_prune.anatomy.sublayers import Part, Sublayer
from lit_prune.errors import AnatomyError
from lit_prune.plan import KINDS, SublayerId

_TUPLE_FORM: dict[type[nn.Module], bool] = {}
"""Whether FFNs of a class return a tuple: asked once for every class."""


class BlockAnatomy:
    """One block, read by the config of its decoder and the user's layout, where there is one.

    `paths` are those of attention and FFN, present or gone; `shared` are norms that go with the last sublayer. The
    block passes its input through without them where no norms stay behind. An AnatomyError says what was found and
    what was expected where it is not understood.
    """

    def __init__(self, block: nn.Module, path: str, number: int, config: Any, described: Layout | None) -> None:
        self._block, self._path, self._config = block, path, config
        self._layout = self._find_layout(described).for_config(config)
        children = self._children()
        self.paths = {SublayerId(number, kind): f"{path}.{children[kind][-1]}" for kind in KINDS}
        self.sublayers = tuple(
            self._sublayer(SublayerId(number, kind), children[kind])
            for kind in KINDS
            if not isinstance(getattr(block, children[kind][-1]), SublayerStub)
        )
        self.shared = tuple(map(self._part, self._layout.shared_norms))
        self.passes_through = not self._layout.staying_norms

    def _part(self, name: str) -> Part:
        return Part(f"{self._path}.{name}", count_parameters([getattr(self._block, name)]))

    def _sublayer(self, sublayer: SublayerId, children: tuple[str, ...]) -> Sublayer:
        layout, is_attention = self._layout, sublayer.kind == "attention"
        norms = layout.attention_norms if is_attention else layout.mlp_norms
        own = getattr(self._block, children[-1])
        residual = ResidualArgument.of(own, layout.residual_argument)
        if is_attention:
            as_tuple, layer_idx = layout.attention_output == "tuple", int(self._path.rpartition(".")[2])
        else:
            as_tuple, layer_idx = len(children) == 1 and self._returns_tuple(own, residual), None
        stub = partial(SublayerStub, as_tuple=as_tuple, residual=residual, layer_idx=layer_idx)
        own_part = replace(self._part(children[-1]), stub=stub)
        after = [name for name in norms if name in layout.norms_after]
        experts = [(parameter.numel(), number) for parameter, number in routed_parameters(own)]
        return Sublayer(
            id=sublayer,
            path=own_part.path,
            output=f"{self._path}.{after[-1]}" if after else own_part.path,
            parts=(*map(self._part, (*norms, *children[:-1])), own_part),
            form=layout.form(norms),
            residual=residual,
            num_idle_parameters=sum(
                size - size * experts_per_token(self._config) // number for size, number in experts
            ),
        )

    def _find_layout(self, described: Layout | None) -> Layout:
        children = dict(self._block.named_children())
        norms = {name for name, child in children.items() if is_norm(child)}
        if described is not None:
            named = (*described.norms, *described.mlp, *filter(None, [described.attention]))
            if absent := [name for name in named if not hasattr(self._block, name)]:
                raise self._misunderstood(f"the layout names {', '.join(absent)}, which it has not")
            if unnamed := norms - set(described.norms):
                raise self._misunderstood(f"the layout does not say what becomes of {', '.join(unnamed)}")
            return described
        rows = [row for row in LAYOUTS if norms <= set(row.norms) <= set(children)]
        if not rows:
            known = "; ".join(" + ".join(row.norms) for row in LAYOUTS)
            found = f"it has the norms {', '.join(sorted(norms)) or 'none'}; known sets are: {known}"
            raise self._misunderstood(found)
        return max(rows, key=lambda row: len(row.norms))

    def _children(self) -> dict[str, tuple[str, ...]]:
        """Names of the children that are the attention and the FFN, in the order in which they are called."""
        working = {name: child for name, child in self._block.named_children() if _has_work(child)}
        named = [name for name in working if ("attn" in name or "attention" in name) and not is_norm(working[name])]
        attention = self._layout.attention or self._only(named, "attention (a child named attn or attention)")
        others = [name for name in working if name not in (*self._layout.norms, attention)]
        mlp = self._layout.mlp or (self._only(others, f"FFN beside {attention}"),)
        return {"attention": (attention,), "mlp": mlp}

    def _only(self, names: list[str], expected: str) -> str:
        if len(names) != 1:
            raise self._misunderstood(f"expected one {expected}, found {', '.join(names) or 'none'}")
        return names[0]

    def _misunderstood(self, why: str) -> AnatomyError:
        children = ", ".join(f"{name} ({type(child).__name__})" for name, child in self._block.named_children())
        return AnatomyError(
            f"the blocks of this {self._config.model_type} model ({type(self._block).__name__}) are not understood: "
            f"{why}. Children: {children}. Describe the blocks with a layout: the "
            "reference page of architectures says how"
        )

    def _returns_tuple(self, mlp: nn.Module, residual: ResidualArgument | None) -> bool:
        kind = type(mlp)
        if kind in _TUPLE_FORM:
            return _TUPLE_FORM[kind]
        # One token of zeros through one FFN tells its form; no table of classes could be complete.
        if next(mlp.parameters()).is_meta:
            # Experts' grouped products know no other dtype there.
            mlp = copy.deepcopy(mlp).to(torch.bfloat16)
        parameter = next(mlp.parameters())
        dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
        token = torch.zeros(1, 1, self._config.hidden_size, dtype=dtype, device=parameter.device)
        extra = {} if residual is None else {residual.name: token}
        try:
            # Dropout may draw, and a look must not change the training that goes on.
            with torch.no_grad(), torch.random.fork_rng():
                _TUPLE_FORM[kind] = isinstance(mlp.forward(token, **extra), tuple)
        except TypeError as error:
            raise AnatomyError(f"the FFN {kind.__name__} wants more than the hidden state: {error}") from error
        return _TUPLE_FORM[kind]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: its class is named so, and it has vectors at most."""
    return "norm" in type(module).__name__.lower() and all(parameter.ndim <= 1 for parameter in module.parameters())


def _has_work(module: nn.Module) -> bool:
    return isinstance(module, SublayerStub) or any(True for _ in module.parameters())


def experts_per_token(config: Any) -> int:
    """How many experts a token goes through; an AnatomyError where the config does not say."""
    counts = (getattr(config, name, None) for name in EXPERTS_PER_TOKEN)
    stated = next((count for count in counts if isinstance(count, int)), None)
    if stated is None:
        raise AnatomyError(
            f"this {config.model_type} model has experts, and its config does not say how many a token goes through "
            f"({', '.join(EXPERTS_PER_TOKEN)})"
        )
    return stated


def routed_parameters(module: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Parameters of the experts in a module, with the number of experts; routers and shared experts are none."""
    for path, child in module.named_modules():
        if path.rpartition(".")[2] != "experts":
            continue
        one_by_one = len(child) if isinstance(child, nn.ModuleList) else None
        for _, parameter in own_parameters(child):
            # Fused experts are stacked along the first dimension.
            yield parameter, one_by_one or parameter.shape[0]
