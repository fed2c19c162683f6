"""A model's sublayers as plain figures: what each costs, and what can be done with it. Wants no weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lit_prune.anatomy import CORRECTIONS, LINEAR, Anatomy, Sublayer, context_length, decoder_config, find_sublayers
from lit_prune.costs.counts import Costs, count_costs
from lit_prune.errors import MeasureError
from lit_prune.surgery import closable_blocks


@dataclass(frozen=True)
class SublayerEntry:
    """One sublayer that is present.

    Attributes:
        id: The address in the original model, such as `attention.5`.
        block: The number of the block in the original model.
        kind: `attention` or `mlp`.
        path: The path of the module in the model.
        num_parameters: How many parameters go with it alone, norms of its own included.
        parameters_share: The same as a share of the whole model's parameters.
        num_shared_norm_parameters: Those of a norm that feeds both sublayers of the block, and goes with the second.
        num_active_parameters: How many of its parameters one token goes through.
        flops: Floating-point operations for one token; of experts, those that the token goes through.
        flops_share: The same as a share of the whole model's operations.
        kv_bytes: How many bytes one token adds to its cache.
        form: How it joins the residual stream.
        adds_residual: Whether the module itself adds the residual.
        corrections: What can make up for its loss and be folded exactly into weights that stay, by name.
        removed_alone: The kind of folder that is saved where it goes alone.
        removed_with_block: The kind of folder that is saved where its whole block goes.
    """

    id: str
    block: int
    kind: str
    path: str
    num_parameters: int
    parameters_share: float
    num_shared_norm_parameters: int
    num_active_parameters: int
    flops: int
    flops_share: float
    kv_bytes: int
    form: str
    adds_residual: bool
    corrections: tuple[str, ...]
    removed_alone: str
    removed_with_block: str


@dataclass(frozen=True)
class Inventory:
    """A model and its sublayers; all fields are plain data.

    Attributes:
        model: The model's name, as the user gave it.
        model_type: `config.model_type`.
        architecture: The name of the model's class.
        blocks_path: The path of the list of blocks in the model.
        num_blocks: How many blocks the original model has.
        num_blocks_in_list: How many blocks are left in the list.
        hidden_size: The width of the residual stream.
        context: How many tokens come before the one whose costs are counted.
        max_context: How many tokens the model is made for; None where its config does not say.
        dtype: The dtype in which bytes are counted.
        num_parameters: How many parameters the model has, tied ones counted once.
        num_active_parameters: How many of them one token goes through.
        weight_bytes: The bytes of all parameters in that dtype.
        flops: Floating-point operations for one token, head included; two for a multiplication with its addition.
        kv_bytes: How many bytes one token adds to the cache.
        sublayers: The sublayers that are present, by block, attention before FFN.
        removed: The ids of the sublayers that are gone.
    """

    model: str
    model_type: str
    architecture: str
    blocks_path: str
    num_blocks: int
    num_blocks_in_list: int
    hidden_size: int
    context: int
    max_context: int | None
    dtype: str
    num_parameters: int
    num_active_parameters: int
    weight_bytes: int
    flops: int
    kv_bytes: int
    sublayers: tuple[SublayerEntry, ...]
    removed: tuple[str, ...]


def take_inventory(model: PreTrainedModel, name: str, *, context: int, dtype: torch.dtype) -> Inventory:
    """Count what every sublayer costs and say what can be done with it.

    Args:
        model: A causal language model on any device, meta included, perhaps pruned. It is left as it was.
        name: The name that the inventory gives it.
        context: How many tokens come before the one whose costs are counted; fewer where the model is made for fewer.
        dtype: The dtype in which bytes of weights and cache are counted.

    Raises:
        AnatomyError: The model is not understood.
        MeasureError: The context is empty, or the model's arithmetic cannot be counted.
    """
    if context < 1:
        raise MeasureError(f"costs are counted after at least 1 token of context; found {context}")
    anatomy = find_sublayers(model)
    max_context = context_length(decoder_config(model))
    costs = count_costs(model, min(context, max_context - 1) if max_context else context)
    closable = closable_blocks(model)
    return Inventory(
        model=name,
        model_type=anatomy.model_type,
        architecture=type(model).__name__,
        blocks_path=anatomy.blocks_path,
        num_blocks=anatomy.num_blocks,
        num_blocks_in_list=len(anatomy.blocks),
        hidden_size=anatomy.hidden_size,
        context=costs.num_positions,
        max_context=max_context,
        dtype=str(dtype).removeprefix("torch."),
        num_parameters=anatomy.num_parameters,
        num_active_parameters=anatomy.num_active_parameters,
        weight_bytes=anatomy.num_parameters * dtype.itemsize,
        flops=costs.total_flops,
        kv_bytes=costs.total_kv_elements * dtype.itemsize,
        sublayers=tuple(
            _entry(sublayer, anatomy, costs, dtype.itemsize, sublayer.id.block in closable)
            for sublayer in anatomy.sublayers
        ),
        removed=tuple(str(sublayer) for sublayer in anatomy.removed),
    )


def _entry(sublayer: Sublayer, anatomy: Anatomy, costs: Costs, itemsize: int, closable: bool) -> SublayerEntry:
    freed = anatomy.num_freed([sublayer.id])
    block = [other.id for other in anatomy.sublayers if other.id.block == sublayer.id.block]
    follows = anatomy.writer_before(sublayer.id) is not None
    return SublayerEntry(
        id=str(sublayer.id),
        block=sublayer.id.block,
        kind=sublayer.id.kind,
        path=sublayer.path,
        num_parameters=freed,
        parameters_share=freed / anatomy.num_parameters,
        num_shared_norm_parameters=anatomy.num_freed(block) - sum(anatomy.num_freed([other]) for other in block),
        num_active_parameters=freed - sublayer.num_idle_parameters,
        flops=costs.flops[sublayer.id],
        flops_share=costs.flops[sublayer.id] / costs.total_flops,
        kv_bytes=costs.kv_elements[sublayer.id] * itemsize,
        form=sublayer.form,
        adds_residual=sublayer.residual is not None,
        corrections=tuple(name for name in CORRECTIONS[sublayer.form] if name != LINEAR or follows),
        removed_alone="lit-prune folder",
        removed_with_block="stock model" if closable else "lit-prune folder",
    )
