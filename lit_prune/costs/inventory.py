"""A model's sublayers as plain figures: what each costs, and what can be done with it. Wants no weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lit_prune.anatomy import CORRECTIONS, LINEAR, Anatomy, Sublayer, context_length, decoder_config, find_sublayers
from lit_prune.costs.counts import Costs, count_costs
from lit_prune.errors import MeasureError
from lit_prune.surgery import closable_blocks

OUR_FOLDER = "lit-prune folder"
STOCK_MODEL = "stock model"


@dataclass(frozen=True)
class SublayerEntry:
    """One sublayer that is present.

    Attributes:
        id: Address in the original model, such as `attention.5`.
        block: Its block in the original model.
        kind: `attention` or `mlp`.
        path: Of the module.
        num_parameters: Those that removing it alone frees, norms of its own included.
        parameters_share: Of the whole model's.
        num_shared_norm_parameters: Those of a norm that feeds its partner too and goes with the second of them.
        num_active_parameters: Those that one token goes through.
        flops: Of one token; of experts, those that the token goes through.
        flops_share: Of the whole model's.
        kv_bytes: That one token adds to its cache.
        form: How it joins the residual stream.
        adds_residual: Whether the module itself adds the residual.
        corrections: What can make up for its loss and be folded exactly into weights that stay.
        removed_alone: What is saved where it goes alone.
        removed_with_block: What is saved where its whole block goes.
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
    """A model and its sublayers; all of its fields are plain data.

    Attributes:
        model: Its name, as the user gave it.
        model_type: `config.model_type`.
        architecture: Name of its class.
        blocks_path: Module path of the list of blocks.
        num_blocks: Blocks of the original model.
        num_blocks_in_list: Blocks that are left in the list.
        hidden_size: Width of the residual stream.
        context: Tokens before the one whose costs are counted.
        max_context: Tokens that the model is made for, None where its config does not say.
        dtype: In which bytes are counted.
        num_parameters: All, tied ones once.
        num_active_parameters: Those that one token goes through.
        weight_bytes: All parameters in that dtype.
        flops: Of one token, head included; two for a multiplication with its addition.
        kv_bytes: That one token adds to the cache.
        sublayers: Those that are present, by block, attention before FFN.
        removed: Ids of those that are gone.
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
        name: To put into the inventory.
        context: Tokens before the one whose costs are counted; fewer where the model is made for fewer.
        dtype: In which bytes are counted, of weights and cache.

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
            _figures(each, anatomy, costs, dtype.itemsize, each.id.block in closable) for each in anatomy.sublayers
        ),
        removed=tuple(str(each) for each in anatomy.removed),
    )


def _figures(sublayer: Sublayer, anatomy: Anatomy, costs: Costs, itemsize: int, closable: bool) -> SublayerEntry:
    freed = anatomy.num_freed([sublayer.id])
    block = [each.id for each in anatomy.sublayers if each.id.block == sublayer.id.block]
    flops = costs.flops[sublayer.id]
    return SublayerEntry(
        id=str(sublayer.id),
        block=sublayer.id.block,
        kind=sublayer.id.kind,
        path=sublayer.path,
        num_parameters=freed,
        parameters_share=freed / anatomy.num_parameters,
        num_shared_norm_parameters=anatomy.num_freed(block) - sum(anatomy.num_freed([each]) for each in block),
        num_active_parameters=freed - sublayer.num_idle_parameters,
        flops=flops,
        flops_share=flops / costs.total_flops,
        kv_bytes=costs.kv_elements[sublayer.id] * itemsize,
        form=sublayer.form,
        adds_residual=sublayer.residual is not None,
        corrections=_corrections(sublayer, anatomy),
        removed_alone=OUR_FOLDER,
        removed_with_block=STOCK_MODEL if closable else OUR_FOLDER,
    )


def _corrections(sublayer: Sublayer, anatomy: Anatomy) -> tuple[str, ...]:
    follows = anatomy.writer_before(sublayer.id) is not None
    return tuple(each for each in CORRECTIONS[sublayer.form] if each != LINEAR or follows)
