"""One decoder block: which of its children are attention, FFN and norms, and what takes their place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class BlockAnatomy:
    """What one block has: module paths by kind, and what is still present.

    Attributes:
        paths: Module paths of attention and FFN, present or gone.
        sublayers: Sublayers that are present.
        shared: Norms that go with the last of them.
        passes_through: Whether the block returns its input without them: no norms stay behind.
    """

    paths: dict[SublayerId, str]
    sublayers: tuple[Sublayer, ...]
    shared: tuple[Part, ...]
    passes_through: bool


class BlockReader:
    """Reads the blocks of one model by the config of its decoder and the user's layout, where there is one."""

    def __init__(self, config: Any, layout: Layout | None) -> None:
        self.config = config
        self.described = layout

    def read(self, block: nn.Module, path: str, number: int) -> BlockAnatomy:
        """Read the block at a module path, by its number in the original model.

        An AnatomyError says what was found and what was expected where the block is not understood.
        """
        layout = self._layout(block).for_config(self.config)
        attention = self._attention(block, layout)
        children = {"attention": (attention,), "mlp": self._mlp(block, layout, attention)}
        present = tuple(
            self._sublayer(block, path, SublayerId(number, kind), children[kind], layout)
            for kind in KINDS
            if not isinstance(getattr(block, children[kind][-1]), SublayerStub)
        )
        return BlockAnatomy(
            paths={SublayerId(number, kind): f"{path}.{children[kind][-1]}" for kind in KINDS},
            sublayers=present,
            shared=tuple(_part(block, path, name) for name in layout.shared_norms),
            passes_through=not layout.staying_norms,
        )

    def _sublayer(
        self, block: nn.Module, path: str, sublayer: SublayerId, children: tuple[str, ...], layout: Layout
    ) -> Sublayer:
        is_attention = sublayer.kind == "attention"
        norms = layout.attention_norms if is_attention else layout.mlp_norms
        own = getattr(block, children[-1])
        residual = ResidualArgument.of(own, layout.residual_argument)
        if is_attention:
            as_tuple, layer_idx = layout.attention_output == "tuple", int(path.rpartition(".")[2])
        else:
            as_tuple, layer_idx = len(children) == 1 and self._returns_tuple(own, residual), None
        stub = partial(SublayerStub, as_tuple=as_tuple, residual=residual, layer_idx=layer_idx)
        own_part = Part(f"{path}.{children[-1]}", count_parameters([own]), stub)
        after = [name for name in norms if name in layout.norms_after]
        return Sublayer(
            id=sublayer,
            path=own_part.path,
            output=f"{path}.{after[-1]}" if after else own_part.path,
            parts=(*(_part(block, path, name) for name in (*norms, *children[:-1])), own_part),
            form=layout.form(norms),
            residual=residual,
            num_idle_parameters=_count_idle(own, self.config),
        )

    def _layout(self, block: nn.Module) -> Layout:
        children = dict(block.named_children())
        norms = {name for name, child in children.items() if is_norm(child)}
        if self.described is not None:
            if absent := [name for name in self.described.parts if not hasattr(block, name)]:
                raise self._misunderstood(block, f"the layout names {', '.join(absent)}, which it has not")
            if unnamed := norms - set(self.described.norms):
                raise self._misunderstood(block, f"the layout does not say what becomes of {', '.join(unnamed)}")
            return self.described
        rows = [row for row in LAYOUTS if norms <= set(row.norms) <= set(children)]
        if not rows:
            known = "; ".join(" + ".join(row.norms) for row in LAYOUTS)
            found = f"it has the norms {', '.join(sorted(norms)) or 'none'}; known sets are: {known}"
            raise self._misunderstood(block, found)
        return max(rows, key=lambda row: len(row.norms))

    def _attention(self, block: nn.Module, layout: Layout) -> str:
        names = [name for name, child in block.named_children() if _is_attention(name, child)]
        return layout.attention or self._only_one(block, names, "attention (a child named attn or attention)")

    def _mlp(self, block: nn.Module, layout: Layout, attention: str) -> tuple[str, ...]:
        known = {*layout.norms, attention}
        names = [name for name, child in block.named_children() if name not in known and _has_work(child)]
        return layout.mlp or (self._only_one(block, names, f"FFN beside {attention}"),)

    def _only_one(self, block: nn.Module, names: list[str], expected: str) -> str:
        if len(names) != 1:
            raise self._misunderstood(block, f"expected one {expected}, found {', '.join(names) or 'none'}")
        return names[0]

    def _misunderstood(self, block: nn.Module, why: str) -> AnatomyError:
        children = ", ".join(f"{name} ({type(child).__name__})" for name, child in block.named_children())
        return AnatomyError(
            f"the blocks of this {self.config.model_type} model ({type(block).__name__}) are not understood: {why}. "
            f"Children: {children}. Describe the blocks with a layout: see docs/architectures.md"
        )

    def _returns_tuple(self, mlp: nn.Module, residual: ResidualArgument | None) -> bool:
        if type(mlp) not in _TUPLE_FORM:
            _TUPLE_FORM[type(mlp)] = self._ask_for_tuple(mlp, residual)
        return _TUPLE_FORM[type(mlp)]

    def _ask_for_tuple(self, mlp: nn.Module, residual: ResidualArgument | None) -> bool:
        # One token of zeros through one FFN tells its form; no table of classes could be complete.
        if next(mlp.parameters()).is_meta:
            # Experts' grouped products know no other dtype there.
            mlp = copy.deepcopy(mlp).to(torch.bfloat16)
        parameter = next(mlp.parameters())
        dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
        token = torch.zeros(1, 1, self.config.hidden_size, dtype=dtype, device=parameter.device)
        extra = {} if residual is None else {residual.name: token}
        try:
            # Dropout may draw, and a look must not change the training that goes on.
            with torch.no_grad(), torch.random.fork_rng():
                return isinstance(mlp.forward(token, **extra), tuple)
        except TypeError as error:
            raise AnatomyError(f"the FFN {type(mlp).__name__} wants more than the hidden state: {error}") from error


def _part(block: nn.Module, path: str, name: str) -> Part:
    return Part(f"{path}.{name}", count_parameters([getattr(block, name)]))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: its class is named so, and it has vectors at most."""
    return "norm" in type(module).__name__.lower() and all(parameter.ndim <= 1 for parameter in module.parameters())


def _is_attention(name: str, module: nn.Module) -> bool:
    return ("attn" in name or "attention" in name) and not is_norm(module) and _has_work(module)


def _has_work(module: nn.Module) -> bool:
    return isinstance(module, SublayerStub) or any(True for _ in module.parameters())


def _count_idle(module: nn.Module, config: Any) -> int:
    """Parameters of experts that a token does not go through: all but `num_experts_per_tok` of them."""
    return sum(
        parameter.numel() - parameter.numel() * experts_per_token(config) // num_experts
        for parameter, num_experts in routed_parameters(module)
    )


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
