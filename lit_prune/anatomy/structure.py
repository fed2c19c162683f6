"""Where the sublayers are: found by structure, refused with what was found when it is not understood."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from lit_prune.anatomy.layouts import LAYOUTS, Layout
from lit_prune.anatomy.stubs import AttentionStub, MlpStub
from lit_prune.errors import AnatomyError, PlanError
from lit_prune.plan import ModelFacts, SublayerId

Role = Literal["attention", "mlp", "mlp_tuple", "identity"]


@dataclass(frozen=True)
class Part:
    """One module that is replaced when its sublayer goes: its path in the model, and what takes its place."""

    path: str
    role: Role


@dataclass(frozen=True)
class Sublayer:
    """One attention or FFN sublayer that is still in the model.

    Attributes:
        id: Address in the original model.
        path: Module path of the attention or FFN (of its last projection where the FFN is written out in the block).
        parts: Every module that goes with it, norms included.
        num_parameters: Parameters that are freed when it goes; adapters do not count.
    """

    id: SublayerId
    path: str
    parts: tuple[Part, ...]
    num_parameters: int


@dataclass(frozen=True)
class Anatomy:
    """The decoder blocks of a model and the sublayers that are still in them.

    Attributes:
        model_type: `config.model_type`.
        blocks_path: Module path of the list of blocks.
        num_blocks: Length of that list, which removal never changes.
        hidden_size: Width of the residual stream.
        num_parameters: All parameters, embeddings and head included, tied ones once, adapters left out.
        sublayers: Those that are present, by block, attention before FFN.
        removed: Those that are gone.
        paths: Module path of every sublayer, present or gone.
    """

    model_type: str
    blocks_path: str
    num_blocks: int
    hidden_size: int
    num_parameters: int
    sublayers: tuple[Sublayer, ...]
    removed: tuple[SublayerId, ...]
    paths: Mapping[SublayerId, str]

    @cached_property
    def _by_id(self) -> dict[SublayerId, Sublayer]:
        return {sublayer.id: sublayer for sublayer in self.sublayers}

    def __contains__(self, sublayer: SublayerId) -> bool:
        return sublayer in self._by_id

    def __getitem__(self, sublayer: SublayerId) -> Sublayer:
        """Look up a sublayer that is present.

        Raises:
            PlanError: It was removed before, or the model never had it.
        """
        if sublayer not in self._by_id:
            why = "was removed before" if sublayer in self.removed else f"is not one of its {self.num_blocks} blocks"
            raise PlanError(f"cannot take {sublayer} out of this {self.model_type} model: it {why}")
        return self._by_id[sublayer]

    def facts(self, name: str = "", revision: str | None = None) -> ModelFacts:
        """What a plan records of the model."""
        return ModelFacts(self.model_type, self.num_blocks, self.hidden_size, self.num_parameters, name, revision)


def language_model(model: nn.Module) -> Any:
    """The Hugging Face model itself, without a peft wrapper around it."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def find_sublayers(model: nn.Module) -> Anatomy:
    """Find every attention and FFN sublayer of a decoder-only Hugging Face model.

    Args:
        model: A causal language model of transformers, on any device (meta too), perhaps pruned or wrapped by peft.

    Raises:
        AnatomyError: It is an encoder-decoder, has no decoder blocks, or its blocks are of an unknown form.
    """
    model = language_model(model)
    config = _decoder_config(model)
    path, blocks = _block_list(model, config.num_hidden_layers)
    finder = _BlockReader(config)
    present: list[Sublayer] = []
    removed: list[SublayerId] = []
    paths: dict[SublayerId, str] = {}
    for index, block in enumerate(blocks):
        for kind, parts in finder.parts(block).items():
            sublayer = SublayerId(index, kind)
            paths[sublayer] = f"{path}.{index}.{parts[-1][0]}"
            if isinstance(getattr(block, parts[-1][0]), AttentionStub | MlpStub):
                removed.append(sublayer)
                continue
            located = tuple(Part(f"{path}.{index}.{name}", role) for name, role in parts)
            freed = count_parameters(getattr(block, name) for name, _ in parts)
            present.append(Sublayer(sublayer, paths[sublayer], located, freed))
    if not removed:
        _require_uniform(config)
    total = count_parameters([model])
    facts = (config.model_type, path, len(blocks), config.hidden_size, total)
    return Anatomy(*facts, tuple(sorted(present, key=lambda each: each.id)), tuple(sorted(removed)), paths)


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Parameters of the modules, each tensor once; those of LoRA adapters are not the model's and do not count."""
    found = {
        id(parameter): parameter.numel()
        for module in modules
        for name, parameter in module.named_parameters()
        if "lora_" not in name
    }
    return sum(found.values())


def _decoder_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise AnatomyError(f"{type(model).__name__} is no Hugging Face model: it has no transformers config")
    if getattr(config, "is_encoder_decoder", False):
        raise AnatomyError(f"{type(model).__name__} is an encoder-decoder; only decoder-only models can be pruned")
    config = config.get_text_config(decoder=True)
    if not getattr(config, "num_hidden_layers", 0):
        raise AnatomyError(f"{type(model).__name__} has no decoder blocks: its config states no num_hidden_layers")
    return config


def _require_uniform(config: Any) -> None:
    """Refuse models that use the two config entries by themselves that a removal needs."""
    own = getattr(config, "kv_sharing_modes", None) or getattr(config, "is_heterogeneous", False)
    if own and not hasattr(config, "lit_prune"):
        raise AnatomyError(
            f"{config.model_type} shares its attention cache between layers or sets layers apart by itself; "
            "removing sublayers from such a model is not supported"
        )


def _block_list(model: nn.Module, length: int) -> tuple[str, nn.ModuleList]:
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    fitting = [(name, module) for name, module in lists if len(module) == length]
    if len(fitting) != 1:
        found = ", ".join(f"{name} with {len(module)}" for name, module in lists) or "none"
        raise AnatomyError(
            f"{type(model).__name__} has {len(fitting)} module lists of {length} decoder blocks "
            f"(its num_hidden_layers), expected one; module lists found: {found}"
        )
    return fitting[0]


_TUPLE_FORM: dict[type[nn.Module], bool] = {}
"""Whether FFNs of a class return a tuple: asked once for every class."""


class _BlockReader:
    """Reads the parts of one block: `{kind: ((child name, role), …)}`, the sublayer's own module last."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def parts(self, block: nn.Module) -> dict[str, tuple[tuple[str, Role], ...]]:
        layout = self._layout(block)
        attention = self._attention(block)
        mlp = self._mlp(block, layout, attention)
        norms_stay = layout.pre_norm_flag is not None and not getattr(self.config, layout.pre_norm_flag)
        attention_norms = () if norms_stay else layout.attention_norms
        mlp_norms = () if norms_stay else layout.mlp_norms
        return {
            "attention": (*((name, "identity") for name in attention_norms), (attention, "attention")),
            "mlp": (*((name, "identity") for name in (*mlp_norms, *mlp[:-1])), (mlp[-1], self._role(block, mlp))),
        }

    def _layout(self, block: nn.Module) -> Layout:
        children = dict(block.named_children())
        norms = {name for name, child in children.items() if _is_norm(child)}
        rows = [row for row in LAYOUTS if norms <= set(row.norms) <= set(children)]
        if not rows:
            known = "; ".join(" + ".join(row.norms) for row in LAYOUTS)
            raise AnatomyError(
                f"the blocks of this {self.config.model_type} model ({type(block).__name__}) have the norms "
                f"{sorted(norms) or 'none'}; known sets are: {known}"
            )
        return max(rows, key=lambda row: len(row.norms))

    def _attention(self, block: nn.Module) -> str:
        names = [name for name, child in block.named_children() if _is_attention(name, child)]
        if len(names) != 1:
            raise AnatomyError(
                f"expected one attention module in {type(block).__name__} of this {self.config.model_type} model, "
                f"found {names or [name for name, _ in block.named_children()]}"
            )
        return names[0]

    def _mlp(self, block: nn.Module, layout: Layout, attention: str) -> tuple[str, ...]:
        if layout.inline_mlp:
            return layout.inline_mlp
        known = {*layout.norms, attention}
        names = tuple(
            name
            for name, child in block.named_children()
            if name not in known and (isinstance(child, MlpStub) or any(True for _ in child.parameters()))
        )
        if len(names) != 1:
            raise AnatomyError(
                f"expected one FFN beside attention in {type(block).__name__} of this {self.config.model_type} model, "
                f"found {list(names) or 'none'}"
            )
        return names

    def _role(self, block: nn.Module, mlp: tuple[str, ...]) -> Role:
        child = getattr(block, mlp[-1])
        if len(mlp) > 1 or isinstance(child, MlpStub):
            return "mlp"
        if type(child) not in _TUPLE_FORM:
            _TUPLE_FORM[type(child)] = self._returns_tuple(child)
        return "mlp_tuple" if _TUPLE_FORM[type(child)] else "mlp"

    def _returns_tuple(self, mlp: nn.Module) -> bool:
        # One token of zeros through one FFN tells its form; no table of classes could be complete.
        parameter = next(mlp.parameters())
        dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
        token = torch.zeros(1, 1, self.config.hidden_size, dtype=dtype, device=parameter.device)
        try:
            # Dropout may draw, and a look must not change the training that goes on.
            with torch.no_grad(), torch.random.fork_rng():
                return isinstance(mlp.forward(token), tuple)
        except TypeError as error:
            raise AnatomyError(f"the FFN {type(mlp).__name__} wants more than the hidden state: {error}") from error


def _is_norm(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return "norm" in type(module).__name__.lower() and all(parameter.ndim <= 1 for parameter in parameters)


def _is_attention(name: str, module: nn.Module) -> bool:
    return ("attn" in name or "attention" in name) and not _is_norm(module) and not isinstance(module, nn.Identity)
