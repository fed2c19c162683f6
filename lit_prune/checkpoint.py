"""A model's structure before its weights: a checkpoint of a pruned or adapted model loads into a fresh one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lit_prune.anatomy import Anatomy, find_sublayers
from lit_prune.errors import ModelError
from lit_prune.guards import require_plain_metadata
from lit_prune.healing import LoraHealing, attach_lora, attached_lora
from lit_prune.plan import SublayerId
from lit_prune.reading import checked, require_kinds
from lit_prune.sums import LAST_FILE, require_intact_checkpoint
from lit_prune.surgery import is_sharded, remove, removed_sublayers


def structure_of(model: nn.Module) -> dict[str, Any]:
    """What distinguishes a Hugging Face model from the one its config builds, in plain types."""
    lora = attached_lora(model)
    return {"removed": [str(each) for each in removed_sublayers(model)], "lora": asdict(lora) if lora else None}


def restore_structure(model: nn.Module, structure: Mapping[str, Any], optimizers: Iterable[Optimizer] = ()) -> None:
    """Bring a model to a recorded structure; its weights are loaded afterwards.

    Args:
        model: Perhaps sharded.
        structure: As `structure_of` gives it.
        optimizers: Those that hold the model's parameters already.

    Raises:
        ModelError: The model has lost more than the record says, or has adapters that the record lacks, or is sharded
            without those that it has; or the record is damaged.
    """
    try:
        require_kinds("its structure", structure, {"removed": tuple[str, ...], "lora": Mapping[str, Any] | None})
        lora = None if structure["lora"] is None else checked(LoraHealing, structure["lora"])
    except (TypeError, AttributeError) as error:
        raise ModelError(f"the checkpoint is damaged: {error}") from error
    wanted = [SublayerId.parse(each) for each in structure["removed"]]
    _require_whole(model, wanted)
    if lora is not None and attached_lora(model) is None:
        if is_sharded(model):
            raise ModelError(
                "the checkpoint has adapters, which must be there before a model is sharded: pass the "
                "SublayerPruneCallback with healing that it was made with"
            )
        attach_lora(model, lora)
    if lora is None and attached_lora(model) is not None:
        raise ModelError(
            "the checkpoint has no adapters and the model has: they were merged before it was saved, or never "
            "attached. Leave `healing` out, or start from a fresh model"
        )
    gone = removed_sublayers(model)
    remove(model, [each for each in wanted if each not in gone], optimizers)


def follow_state_dict(model: Any, lora: LoraHealing | None = None) -> RemovableHandle:
    """Make `load_state_dict` bring the model to the structure of what it loads, whatever module holds it.

    A hook of the Hugging Face model itself is the one place that is early enough: Lightning restores weights before
    callbacks, and optimizers after both.

    Args:
        model: The Hugging Face model.
        lora: Settings for adapters that the state has and the model lacks.
    """

    # A copy of the model, such as a running average, has a copy of the hook, which is about that copy.
    def follow(own: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
        # An empty tensor stands for one that was removed.
        names = [name.removeprefix(prefix) for name in state if name.startswith(prefix) and state[name].numel()]
        anatomy = find_sublayers(own)
        absent = _absent(anatomy, names)
        if not _is_whole_without(own, anatomy, names, absent):
            return  # a part of a model, such as adapters alone, says nothing about the rest
        has_lora = any(".lora_" in name for name in names)
        settings = attached_lora(own) or lora if has_lora else None
        structure = {"removed": [str(each) for each in absent], "lora": asdict(settings) if settings else None}
        restore_structure(own, structure)

    handle: RemovableHandle = model.register_load_state_dict_pre_hook(follow)
    return handle


def follow_strategy(
    strategy: Any, model: nn.Module, recorded: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
) -> Callable[[], None]:
    """Bring a sharded model to the structure of the checkpoint that Lightning's ModelParallelStrategy loads.

    It loads into the model that is there, after the optimizers were made and without asking the model.

    Args:
        strategy: That restores checkpoints after set-up.
        model: The Hugging Face model.
        recorded: Finds the structure in what a checkpoint holds besides weights; None leaves the model as it is.

    Returns:
        A function that ends this.
    """
    original = strategy.load_checkpoint

    def load_checkpoint(checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        structure = recorded(_facts(Path(strategy.broadcast(checkpoint_path))))
        if structure is not None:
            restore_structure(model, structure, strategy.optimizers)
        return original(checkpoint_path, *args, **kwargs)

    # An attribute of the object hides the method of its class.
    strategy.load_checkpoint = load_checkpoint
    return lambda: strategy.__dict__.pop("load_checkpoint", None)


def _facts(path: Path) -> Mapping[str, Any]:
    require_plain_metadata(path)
    if path.is_dir():
        require_intact_checkpoint(path)
    file = path / LAST_FILE if path.is_dir() else path
    facts: Mapping[str, Any] = torch.load(file, map_location="cpu", mmap=path.is_file(), weights_only=True)
    return facts


def _absent(anatomy: Anatomy, names: list[str]) -> list[SublayerId]:
    # Blocks that are out of the stack have no path, and nothing of them can be in the state.
    taken_out = [each for each in anatomy.removed if each not in anatomy.paths]
    listed = [each for each, path in anatomy.paths.items() if not any(name.startswith(f"{path}.") for name in names)]
    return [*taken_out, *listed]


def _is_whole_without(model: nn.Module, anatomy: Anatomy, names: list[str], absent: list[SublayerId]) -> bool:
    """Whether the state holds every weight of the model but those of the absent sublayers, adapters aside."""
    gone = [f"{part.path}." for part in anatomy.parts(each for each in absent if each in anatomy)]
    held = {_plain(name) for name in names}
    own = {_plain(name) for name, each in model.state_dict().items() if ".lora_" not in name and each.numel()}
    return all(name in held for name in own if not name.startswith(tuple(gone)))


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _require_whole(model: nn.Module, wanted: list[SublayerId]) -> None:
    extra = [str(each) for each in removed_sublayers(model) if each not in wanted]
    if extra:
        raise ModelError(
            f"the checkpoint holds {', '.join(extra)}, which this model has lost; load it into a fresh model, such as "
            "LitCausalLM.load_from_checkpoint(path)"
        )
