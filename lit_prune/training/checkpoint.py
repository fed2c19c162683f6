"""A model's structure before its weights: a checkpoint of a pruned or adapted model loads into any copy of it.

Every checkpoint holds the structure under one key, and `restore_structure` is the one way in: Lightning asks for it
before it loads weights and makes optimizers.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lit_prune.anatomy import is_adapted, language_model
from lit_prune.errors import ModelError
from lit_prune.files import record_of, require_kinds
from lit_prune.healing import (
    LoraHealing,
    adapters_of,
    attach_lora,
    attached_lora,
    merge,
    restore_adapters,
    restore_switches,
    switches_of,
)
from lit_prune.loading.checksums import LAST_FILE, require_intact_checkpoint
from lit_prune.loading.models import load
from lit_prune.loading.trees import is_a
from lit_prune.loading.untrusted import require_plain_metadata
from lit_prune.plan import PrunePlan, SublayerId, joined
from lit_prune.surgery import is_sharded, put_back, remove, removed_sublayers

STRUCTURE_KEY = "lit_prune"
"""Where a checkpoint keeps the structure of its model."""


def structure_of(model: nn.Module) -> dict[str, Any]:
    """What distinguishes a Hugging Face model, perhaps wrapped by peft, from the one its config builds, in plain types.

    Raises:
        LitPruneError: It has adapters whose config no checkpoint can keep.
    """
    model = language_model(model)
    lora = attached_lora(model)
    return {
        "removed": [str(sublayer) for sublayer in removed_sublayers(model)],
        "lora": asdict(lora) if lora else None,
        "adapters": [] if lora else adapters_of(model),
        "switches": {} if lora else switches_of(model),
    }


def restore_structure(model: nn.Module, checkpoint: Mapping[str, Any], optimizers: Iterable[Optimizer] = ()) -> bool:
    """Bring a model to the structure of a checkpoint, in place; its weights are loaded afterwards.

    What the model has and the checkpoint lacks is removed, what it has lost is built again, adapters are attached.
    Call it in the `on_load_checkpoint` of a LightningModule of yours that is loaded without `SublayerPruneCallback`.

    Args:
        model: A causal language model, perhaps wrapped by peft. One that is sharded already can only lose sublayers.
        checkpoint: A Lightning checkpoint. One that lit-prune had no part in leaves the model as it is.
        optimizers: The optimizers that hold the model's parameters already; by default there are none.

    Returns:
        Whether adapters of healing were attached, which `lit_prune.merge` folds in.

    Raises:
        ModelError: The model has adapters that the checkpoint lacks, or others; or the record is damaged.
    """
    if STRUCTURE_KEY not in checkpoint:
        return False
    model = language_model(model)
    removed, lora, adapters, switches = _read(checkpoint[STRUCTURE_KEY])
    if lora is None and attached_lora(model) is not None:
        raise ModelError(
            "the checkpoint has no adapters and the model has: they were merged before it was saved, or never "
            "attached. Leave `healing` out, or start from a fresh model"
        )
    gone = removed_sublayers(model)
    lost = [sublayer for sublayer in gone if sublayer not in removed]
    attaches = lora is not None and attached_lora(model) is None
    if is_sharded(model) and (lost or attaches):
        raise ModelError(
            "the checkpoint has adapters or sublayers that the model lacks, and they must be there before a model is "
            "sharded: start from the dense model, and pass the SublayerPruneCallback with healing that it was made with"
        )
    if lost:
        _take_adapters_off(model)
        put_back(model, lost)
    if lora is not None and attaches:
        _attach_lora(model, lora)
    restore_adapters(model, adapters)
    remove(model, [sublayer for sublayer in removed if sublayer not in gone], optimizers)
    restore_switches(model, switches)
    return attaches


def follow_checkpoints(
    module: L.LightningModule, strategy: Any, restore: Callable[[Mapping[str, Any]], object]
) -> Callable[[], None]:
    """Have `restore` called with every checkpoint before its weights are loaded; returns what ends this.

    That comes before any `on_load_checkpoint` of the module's own.
    """
    # This strategy fills the model that is there and asks the module afterwards.
    loads = is_a(strategy, ModelParallelStrategy)
    hooked, name = (strategy, "load_checkpoint") if loads else (module, "on_load_checkpoint")
    own = getattr(hooked, name)

    def first(checkpoint: Any, *args: Any, **kwargs: Any) -> Any:
        restore(read_facts(Path(strategy.broadcast(checkpoint))) if loads else checkpoint)
        return own(checkpoint, *args, **kwargs)

    # An attribute of the object hides the method of its class.
    vars(hooked)[name] = first
    return lambda: vars(hooked).pop(name, None)


def read_facts(path: Path) -> Mapping[str, Any]:
    """What a checkpoint, a file or a distributed folder, holds besides tensors, as plain data; weights stay on disk.

    Raises:
        ModelError: It is damaged, or would run code.
    """
    require_plain_metadata(path)
    if path.is_dir():
        require_intact_checkpoint(path)
    file = path / LAST_FILE if path.is_dir() else path
    return cast(Mapping[str, Any], torch.load(file, map_location="cpu", mmap=path.is_file(), weights_only=True))


def _read(structure: Any) -> tuple[list[SublayerId], LoraHealing | None, list[Any], Mapping[str, Any]]:
    kinds = {"removed": tuple[str, ...], "lora": Mapping[str, Any] | None}
    try:
        require_kinds("its structure", structure, kinds)
        lora = None if structure["lora"] is None else record_of(LoraHealing, structure["lora"])
        # Written since there is more than LoRA.
        found = {"adapters": structure.get("adapters", []), "switches": structure.get("switches", {})}
        require_kinds("its structure", found, {"adapters": list[Any], "switches": Mapping[str, Any]})
    except (TypeError, AttributeError) as error:
        raise ModelError(f"the checkpoint is damaged: {error}") from error
    return [SublayerId.parse(name) for name in structure["removed"]], lora, found["adapters"], found["switches"]


def _attach_lora(model: nn.Module, lora: LoraHealing) -> None:
    try:
        attach_lora(model, lora)
    except (TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise ModelError(f"the checkpoint is damaged: no model can have its adapters ({lora}): {error}") from error


def _take_adapters_off(model: nn.Module) -> None:
    """Take adapters off a model that gets sublayers back: those need adapters as well, and all weights are replaced."""
    if attached_lora(model) is not None:
        merge(model)
    elif is_adapted(model):
        raise ModelError(
            "the checkpoint holds sublayers that this model has lost, and the model has adapters of yours, which they "
            "would lack; load it into a fresh model"
        )


def load_checkpoint(
    path: str | Path,
    model: str | Path,
    *,
    part: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PrunePlan | None]:
    """Load the language model out of the checkpoint of any LightningModule, pruned or not, with adapters merged.

    Args:
        path: A Lightning checkpoint of one file. No code in it is run.
        model: The dense model that the training began with, as for `lit_prune.load`.
        part: The attribute path of the model in the module, such as `net.lm`, where there are several.
        dtype: The dtype of the weights; auto takes that of the checkpoint.
        trust_remote_code: Whether to run code that comes with the model.

    Returns:
        The model, in eval mode, and the plan that it was pruned by, None where the checkpoint has none.

    Raises:
        ModelError: It is no such file, or holds no copy of this model, or several.
    """
    if Path(path).is_dir():
        raise ModelError(f"{path} is a checkpoint in shards; `fabric consolidate {path}` makes one file of it")
    require_intact_checkpoint(path)
    try:
        checkpoint = read_facts(Path(path))
        held = dict(checkpoint["state_dict"])
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} is no checkpoint of Lightning's with weights and plain data: {error!r}") from error
    state: dict[str, Tensor] = {name.replace("_orig_mod.", ""): value for name, value in held.items()}  # compiled
    kinds = [value.dtype for value in state.values() if isinstance(value, Tensor) and value.is_floating_point()]
    wanted = kinds[0] if dtype == "auto" and kinds else dtype
    found = load(model, dtype=wanted, trust_remote_code=trust_remote_code)
    restore_structure(found, checkpoint)
    prefix = _prefix(found, state, part, path)
    found.load_state_dict({name: state[prefix + name] for name in found.state_dict()})
    if is_adapted(found):
        merge(found)
    found.train(False)
    return found, _plan_in(checkpoint)


def _prefix(model: nn.Module, state: Mapping[str, Tensor], part: str | None, path: str | Path) -> str:
    """What stands before the names of a model's tensors in a module's state dict."""
    shapes = {name: value.shape for name, value in model.state_dict().items() if value.numel()}
    first = next(iter(shapes))
    ends = [name.removesuffix(first) for name in state if name.endswith(first)]
    if part is not None:
        ends = [end for end in ends if end.startswith(f"{part}.")]
    has = {name: getattr(value, "shape", None) for name, value in state.items()}
    fits = [end for end in ends if all(has.get(end + name) == shape for name, shape in shapes.items())]
    if len(fits) != 1:
        named = ", ".join(end.removesuffix(".") for end in fits) or "none"
        raise ModelError(
            f"{path} holds {len(fits)} copies of this model ({named}), expected one: give the dense model that the "
            "training began with, and where there are several say which by its attribute path (part=net.lm)"
        )
    return fits[0]


def _plan_in(checkpoint: Mapping[str, Any]) -> PrunePlan | None:
    states = [state for state in (checkpoint.get("callbacks") or {}).values() if isinstance(state, Mapping)]
    found = [state for state in states if state.get("plan") and "num_earlier" in state]
    plans = [(PrunePlan.from_dict(state["plan"]), state["num_earlier"]) for state in found]
    return joined(plans) if plans else None
