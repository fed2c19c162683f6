"""Adapters of the user's own, by peft or transformers: a checkpoint keeps their whole configs, and brings them back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from peft import PeftConfig, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lit_prune.errors import LitPruneError, ModelError
from lit_prune.files import require_kinds

LOADED = "_hf_peft_config_loaded"
"""Where transformers writes down that `save_pretrained` is to write the adapters alone."""
RUNS_CODE = ("megatron_config", "megatron_core", "auto_mapping")
"""Settings that name modules to import."""
OF_THE_START = ("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config")
"""Settings for weights that are drawn, which a checkpoint brings, and for changes of the model's own, which it has."""
OF_NO_EFFECT = ("base_model_name_or_path", "inference_mode", "revision", "task_type", "peft_version", *OF_THE_START)


def adapters_of(model: nn.Module) -> list[dict[str, Any]]:
    """The adapters of a model as plain data: where they are, their name, their whole config.

    Args:
        model: A Hugging Face model, without peft's wrapper.

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
    return {path: _switches(each) for path, each in _adapted(model)}


def restore_switches(model: nn.Module, recorded: Mapping[str, Any]) -> None:
    """Bring adapted modules to what `switches_of` recorded; nothing where the record has none, as before there was one.

    Args:
        model: A Hugging Face model with the adapters of the record.
        recorded: Perhaps from a file of a stranger.

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
        "scaling": {name: each for name, each in numbers if isinstance(each, int | float)},
    }


def restore_adapters(model: nn.Module, recorded: list[Any]) -> None:
    """Put recorded adapters on a model that lacks them; their weights are loaded afterwards.

    Args:
        model: A Hugging Face model, without peft's wrapper.
        recorded: As `adapters_of` gives it, perhaps from a file of a stranger.

    Raises:
        ModelError: The record is damaged, peft cannot attach such adapters by their config, or the model has
            adapters of that name with other settings.
    """
    present = {(path, name): config for path, name, config in _configs(model)}
    for each in recorded:
        kinds = {"path": str, "name": str, "config": Mapping[str, Any], "by_transformers": bool}
        try:
            require_kinds("its adapters", each, kinds)
        except TypeError as error:
            raise ModelError(f"the checkpoint is damaged: {error}") from error
        if (each["path"], each["name"]) in present:
            _require_same(each["name"], each["config"], _plain_config(present[each["path"], each["name"]]))
        else:
            _attach(model, each)


def _attach(model: nn.Module, each: Mapping[str, Any]) -> None:
    kind = str(each["config"].get("peft_type"))
    try:
        made = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)  # type: ignore[call-overload]
        if made is None or any(each["config"].get(name) for name in RUNS_CODE):
            raise ModelError(
                f"the checkpoint has adapters of the kind {kind[:40]!r} with settings that are not made here"
            )
        own = {key: value for key, value in each["config"].items() if key not in (*OF_NO_EFFECT, *RUNS_CODE)}
        inject_adapter_in_model(made(**own), model.get_submodule(each["path"]), each["name"])
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, MemoryError, re.error) as error:
        raise ModelError(
            f"the checkpoint has {kind[:40]} adapters, and peft cannot put them on a model by their config ({error}); "
            "attach them as before, then load the checkpoint"
        ) from error
    if each["by_transformers"]:
        setattr(model, LOADED, True)


def _require_same(name: str, recorded: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    names = sorted({*recorded, *own} - {*OF_NO_EFFECT})
    wrong = [each for each in names if recorded.get(each) != own.get(each)]
    if wrong:
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
    found: dict[str, Any] = _plain({name: value for name, value in data.items() if name not in RUNS_CODE})
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    raise LitPruneError(
        f"the adapters' config holds a {type(value).__name__}, which no checkpoint of plain data can keep: merge the "
        "adapters, or leave that setting out"
    )
