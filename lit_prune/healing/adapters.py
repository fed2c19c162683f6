"""Adapters of the user's own, by peft or transformers: a checkpoint keeps their whole configs, and brings them back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, cast

from peft import PeftConfig, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lit_prune.errors import LitPruneError, ModelError
from lit_prune.files import require_kinds

LOADED = "_hf_peft_config_loaded"
"""Where transformers writes down that `save_pretrained` is to write the adapters alone."""
RUNS_CODE = ("megatron_config", "megatron_core", "auto_mapping")  # they name modules to import
OF_THE_START = ("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config")
"""Settings for weights that are drawn, which a checkpoint brings, and for changes of the model's own, which it has."""
OF_NO_EFFECT = ("base_model_name_or_path", "inference_mode", "revision", "task_type", "peft_version", *OF_THE_START)


def adapters_of(model: nn.Module) -> list[dict[str, Any]]:
    """The adapters of a Hugging Face model as plain data: where they are, their name, their whole config.

    Raises:
        LitPruneError: A config holds what is no plain data, or names modules to import.
    """
    transformers_own = bool(getattr(model, LOADED, False))
    return [
        {"path": path, "name": name, "config": _plain_config(config), "by_transformers": transformers_own}
        for path, name, config in _configs(model)
    ]


def switches_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What was done to adapted modules since: adapters that are active, off, merged into weights, scaled; by path."""
    return {path: _switches(module) for path, module in _adapted(model)}


def restore_switches(model: nn.Module, recorded: Mapping[str, Any]) -> None:
    """Bring adapted modules to what `switches_of` recorded, perhaps in the file of a stranger.

    Older records have nothing of the kind, and change nothing.

    Raises:
        ModelError: The record is damaged, or of other modules.
    """
    present = dict(_adapted(model))
    kinds = {"active": tuple[str, ...], "off": bool, "merged": tuple[str, ...], "scaling": Mapping[str, float]}
    for path, wanted in recorded.items():
        try:
            require_kinds("its adapters", wanted, kinds)
            _switch(present[path], _switches(present[path]), wanted)
        except (TypeError, KeyError, ValueError) as error:
            raise ModelError(f"the checkpoint is damaged, or of other adapters: {error}") from error


def _switch(module: Any, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    # The first two say what is trained, too.
    if found["active"] != wanted["active"]:
        module.set_adapter(list(wanted["active"]))
    if found["off"] != wanted["off"]:
        module.enable_adapters(not wanted["off"])
    if found["merged"] != wanted["merged"]:
        module.merged_adapters[:] = wanted["merged"]  # the weights that are loaded are so
    for name in wanted["scaling"].keys() & found["scaling"].keys():
        module.scaling[name] = wanted["scaling"][name]


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield path, module


def _switches(module: Any) -> dict[str, Any]:
    scaling = getattr(module, "scaling", None)
    numbers = scaling.items() if isinstance(scaling, Mapping) else ()
    return {
        "active": list(module.active_adapters),
        "off": bool(module.disable_adapters),
        "merged": list(getattr(module, "merged_adapters", ())),
        "scaling": {name: number for name, number in numbers if isinstance(number, int | float)},
    }


def restore_adapters(model: nn.Module, recorded: list[Any]) -> None:
    """Put adapters that `adapters_of` recorded on a model that lacks them; their weights are loaded afterwards.

    Raises:
        ModelError: The record is damaged, peft cannot attach such adapters by their config, or the model has
            adapters of that name with other settings.
    """
    present = {(path, name): config for path, name, config in _configs(model)}
    kinds = {"path": str, "name": str, "config": Mapping[str, Any], "by_transformers": bool}
    for adapter in recorded:
        try:
            require_kinds("its adapters", adapter, kinds)
        except TypeError as error:
            raise ModelError(f"the checkpoint is damaged: {error}") from error
        own = present.get((adapter["path"], adapter["name"]))
        if own is None:
            _attach(model, adapter)
        else:
            _require_same(adapter["name"], adapter["config"], _plain_config(own))


def _attach(model: nn.Module, adapter: Mapping[str, Any]) -> None:
    config = adapter["config"]
    kind = str(config.get("peft_type"))
    try:
        made = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)  # type: ignore[call-overload]
        if made is None or any(config.get(name) for name in RUNS_CODE):
            raise ModelError(
                f"the checkpoint has adapters of the kind {kind[:40]!r} with settings that are not made here"
            )
        settings = {name: value for name, value in config.items() if name not in (*OF_NO_EFFECT, *RUNS_CODE)}
        inject_adapter_in_model(made(**settings), model.get_submodule(adapter["path"]), adapter["name"])
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, MemoryError, re.error) as error:
        raise ModelError(
            f"the checkpoint has {kind[:40]} adapters, and peft cannot put them on a model by their config ({error}); "
            "attach them as before, then load the checkpoint"
        ) from error
    if adapter["by_transformers"]:
        setattr(model, LOADED, True)


def _require_same(name: str, recorded: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    names = sorted({*recorded, *own} - {*OF_NO_EFFECT})
    if wrong := [setting for setting in names if recorded.get(setting) != own.get(setting)]:
        first = wrong[0]
        raise ModelError(
            f"the adapters {name!r} of the checkpoint were made with {first}={recorded.get(first)!r}, those of the "
            f"model with {first}={own.get(first)!r}; attach them as before"
        )


def _configs(model: nn.Module) -> Iterator[tuple[str, str, PeftConfig]]:
    for path, module in model.named_modules():
        for name, config in (vars(module).get("peft_config") or {}).items():
            yield path, name, config


def _plain_config(config: PeftConfig) -> dict[str, Any]:
    data = config.to_dict()
    if data.get("megatron_config"):
        raise LitPruneError("adapters with a megatron_config cannot be kept in a checkpoint; leave it out")
    kept = {name: value for name, value in data.items() if name not in RUNS_CODE}
    return cast(dict[str, Any], json.loads(json.dumps(kept, default=_plain)))


def _plain(value: object) -> Any:
    """What JSON can hold for what it does not know."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    raise LitPruneError(
        f"the adapters' config holds a {type(value).__name__}, which no checkpoint of plain data can keep: merge the "
        "adapters, or leave that setting out"
    )
