"""A model's structure before its weights: a checkpoint of a pruned or adapted model loads into any copy of it.

Every checkpoint holds the structure under one key, and `restore_structure` is the one way in: Lightning asks for it
before it loads weights and makes optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.optim import Optimizer

from lit_prune.anatomy import language_model
from lit_prune.errors import ModelError
from lit_prune.guards import require_plain_metadata
from lit_prune.healing import (
    LoraHealing,
    adapters_of,
    attach_lora,
    attached_lora,
    has_adapters,
    merge_lora,
    restore_adapters,
)
from lit_prune.plan import SublayerId
from lit_prune.reading import checked, require_kinds
from lit_prune.sums import LAST_FILE, require_intact_checkpoint
from lit_prune.surgery import is_sharded, put_back, remove, removed_sublayers

STRUCTURE_KEY = "lit_prune"
"""Where a checkpoint keeps the structure of its model."""
HOOK = "on_load_checkpoint"


def structure_of(model: nn.Module) -> dict[str, Any]:
    """What distinguishes a Hugging Face model from the one its config builds, in plain types.

    Args:
        model: Perhaps wrapped by peft.

    Raises:
        LitPruneError: It has adapters whose config no checkpoint can keep.
    """
    model = language_model(model)
    lora = attached_lora(model)
    return {
        "removed": [str(each) for each in removed_sublayers(model)],
        "lora": asdict(lora) if lora else None,
        "adapters": [] if lora else adapters_of(model),
    }


def restore_structure(model: nn.Module, checkpoint: Mapping[str, Any], optimizers: Iterable[Optimizer] = ()) -> bool:
    """Bring a model to the structure of a checkpoint, in place; its weights are loaded afterwards.

    What the model has and the checkpoint lacks is removed, what it has lost is built again, adapters are attached.
    Call it in the `on_load_checkpoint` of a LightningModule of yours that is loaded without `SublayerPruneCallback`.

    Args:
        model: A causal language model, perhaps wrapped by peft. One that is sharded already can only lose sublayers.
        checkpoint: A Lightning checkpoint. One that lit-prune had no part in leaves the model as it is.
        optimizers: Those that hold the model's parameters already.

    Returns:
        Whether adapters of healing were attached, which `lit_prune.merge` folds in.

    Raises:
        ModelError: The model has adapters that the checkpoint lacks, or others; or the record is damaged.
    """
    if STRUCTURE_KEY not in checkpoint:
        return False
    model = language_model(model)
    removed, lora, adapters = _read(checkpoint[STRUCTURE_KEY])
    if lora is None and attached_lora(model) is not None:
        raise ModelError(
            "the checkpoint has no adapters and the model has: they were merged before it was saved, or never "
            "attached. Leave `healing` out, or start from a fresh model"
        )
    gone = removed_sublayers(model)
    lost = [each for each in gone if each not in removed]
    attaches = lora is not None and attached_lora(model) is None
    if is_sharded(model) and (lost or attaches):
        raise ModelError(
            "the checkpoint has adapters or sublayers that the model lacks, and they must be there before a model is "
            "sharded: start from the dense model, and pass the SublayerPruneCallback with healing that it was made with"
        )
    if lost:
        _make_room(model)
        put_back(model, lost)
    if lora is not None and attaches:
        attach_lora(model, lora)
    restore_adapters(model, adapters)
    remove(model, [each for each in removed if each not in gone], optimizers)
    return attaches


def follow_checkpoints(
    module: L.LightningModule, strategy: Any, restore: Callable[[Mapping[str, Any]], object]
) -> Callable[[], None]:
    """See to it that a checkpoint's structure is restored first, whatever the module does itself with what is loaded.

    Args:
        module: Any, perhaps with an `on_load_checkpoint` of its own.
        strategy: That loads. `ModelParallelStrategy` fills the model that is there and asks the module afterwards.
        restore: Gets the checkpoint before its weights are loaded.

    Returns:
        A function that ends this.
    """
    owner, name = (strategy, "load_checkpoint") if isinstance(strategy, ModelParallelStrategy) else (module, HOOK)
    own = getattr(owner, name)

    def first(checkpoint: Any, *args: Any, **kwargs: Any) -> Any:
        restore(checkpoint if owner is module else read_facts(Path(strategy.broadcast(checkpoint))))
        return own(checkpoint, *args, **kwargs)

    # An attribute of the object hides the method of its class.
    vars(owner)[name] = first
    return lambda: vars(owner).pop(name, None)


def read_facts(path: Path) -> Mapping[str, Any]:
    """What a checkpoint, a file or a distributed folder, holds besides tensors, as plain data; weights stay on disk.

    Raises:
        ModelError: It is damaged, or would run code.
    """
    require_plain_metadata(path)
    if path.is_dir():
        require_intact_checkpoint(path)
    file = path / LAST_FILE if path.is_dir() else path
    facts: Mapping[str, Any] = torch.load(file, map_location="cpu", mmap=path.is_file(), weights_only=True)
    return facts


def _read(structure: Any) -> tuple[list[SublayerId], LoraHealing | None, list[Any]]:
    kinds = {"removed": tuple[str, ...], "lora": Mapping[str, Any] | None}
    try:
        require_kinds("its structure", structure, kinds)
        lora = None if structure["lora"] is None else checked(LoraHealing, structure["lora"])
        adapters = structure.get("adapters", [])  # written since there is more than LoRA
        if not isinstance(adapters, list):
            raise TypeError(f"adapters of its structure are of a wrong kind: {type(adapters).__name__}")
    except (TypeError, AttributeError) as error:
        raise ModelError(f"the checkpoint is damaged: {error}") from error
    return [SublayerId.parse(each) for each in structure["removed"]], lora, adapters


def _make_room(model: nn.Module) -> None:
    """Take adapters off a model that gets sublayers back: those need adapters as well, and all weights are replaced."""
    if attached_lora(model) is not None:
        merge_lora(model)
    elif has_adapters(model):
        raise ModelError(
            "the checkpoint holds sublayers that this model has lost, and the model has adapters of yours, which they "
            "would lack; load it into a fresh model"
        )
