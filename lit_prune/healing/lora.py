"""LoRA adapters by peft, attached in place: the model keeps its class, its names and its place in your module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lit_prune.anatomy import find_sublayers, is_adapted, language_model
from lit_prune.errors import LitPruneError, ModelError
from lit_prune.files import folder_aside
from lit_prune.healing.adapters import LOADED
from lit_prune.loading.checksums import write_sums
from lit_prune.plan import LoraHealing
from lit_prune.surgery import compacted

HEALING = "_lit_prune_healing"  # where a model keeps the settings of its adapters
FROZEN = "_lit_prune_frozen"  # where it keeps the parameters that were frozen before the adapters came
SAVE = "save_pretrained"  # an attribute of the object hides the method of its class


def attach_lora(model: nn.Module, healing: LoraHealing) -> None:
    """Add adapters to the linear layers of the decoder blocks, in place; from here on they alone are trained.

    Experts that are stacked in one tensor, and routers, are no linear layers and get none.

    Raises:
        LitPruneError: The model has adapters already, or none of the targets.
    """
    if is_adapted(model):
        raise LitPruneError("the model has adapters already; merge or unload them, or leave `healing` out")
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    blocks = find_sublayers(model).block_list(model)
    try:
        # The blocks alone: heads and towers stay as they are, and peft does not rewrite targets for a model's type.
        inject_adapter_in_model(_config_of(healing, blocks), blocks)
    except ValueError as error:
        raise LitPruneError(f"LoRA cannot be attached to {healing.targets}: {error}") from error
    adapters = [parameter for parameter in blocks.parameters() if parameter.requires_grad]  # the rest peft has frozen
    model.requires_grad_(False)
    for parameter in adapters:
        parameter.requires_grad_()
    for module in blocks.modules():
        if isinstance(module, BaseTunerLayer):
            _keep_in_float32(module)
    own = {"peft_config": vars(blocks).pop("peft_config"), HEALING: healing, FROZEN: frozen, SAVE: _refuse_to_save}
    vars(model).update(own)


def _config_of(healing: LoraHealing, model: nn.Module) -> LoraConfig:
    """The settings as peft takes them, for the modules of a model."""
    return LoraConfig(
        r=healing.rank,
        # peft takes fractions; its annotation says int.
        lora_alpha=cast(int, 2 * healing.rank if healing.alpha is None else healing.alpha),
        lora_dropout=healing.dropout,
        target_modules=healing.targets,
        exclude_modules=_routers(model) or None,
        # These layers hold their weights transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


class _Wide:
    """Holds weights that no cast of a model around them makes narrower, such as that of `bf16-true`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def wide(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.element_size() >= tensor.element_size() else tensor.to(changed.device)

        return super()._apply(wide, recurse)  # type: ignore[misc]


class _WideModules(_Wide, nn.ModuleDict):
    pass


class _WideParameters(_Wide, nn.ParameterDict):
    pass


def _keep_in_float32(adapted: BaseTunerLayer) -> None:
    # Small updates would be lost to rounding in half precision.
    for name in adapted.adapter_layer_names:
        weights = getattr(adapted, name)
        if isinstance(weights, nn.ModuleDict | nn.ParameterDict):
            weights.float()
            weights.__class__ = _WideModules if isinstance(weights, nn.ModuleDict) else _WideParameters


def attached_lora(model: nn.Module) -> LoraHealing | None:
    """The settings of the adapters that `attach_lora` has put on a model and nobody has merged; None without."""
    return cast(LoraHealing | None, vars(model).get(HEALING))


def _refuse_to_save(*_: Any, **__: Any) -> None:
    """What `save_pretrained` is while there are adapters: it would write names that load as random layers."""
    raise ModelError(
        "the model still has the adapters of its healing; lit_prune.merge(model) folds them into the weights, and then "
        "it is saved"
    )


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Run the model without its adapters in a `with` block, as it will run when they are merged."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    adapted = [layer for layer in layers if not layer.disable_adapters]
    # peft freezes what it switches off, and thaws all that it switches on.
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for module in adapted:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in adapted:
            module.enable_adapters(True)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def merge(model: nn.Module) -> None:
    """Fold the adapters of a model into its weights and take them off, in place.

    It is for a model that a broken-off training has left with adapters, or whose adapters you attached yourself. What
    was trained before them can be trained again.

    Args:
        model: A causal language model, perhaps wrapped by peft; the model inside has no adapters then.

    Raises:
        AnatomyError: It is no Hugging Face model.
    """
    model = language_model(model)
    for kind in (AuxiliaryTrainingWrapper, BaseTunerLayer):  # the first may hold the other
        for name, module in [*model.named_modules()]:
            if isinstance(module, kind):
                model.set_submodule(name, _merged(module))
    _untie(model)
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(True)
    for parameter in vars(model).pop(FROZEN, ()):
        parameter.requires_grad_(False)
    for name in (HEALING, SAVE, LOADED):
        vars(model).pop(name, None)


def _merged(module: Any) -> Any:
    """The model's own layer, computing what it computed with what was around it: adapters that are off do nothing."""
    off = module.disable_adapters
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module if off else module.unload_and_optionally_merge_module(True, False, None)
    if off and module.merged:
        module.unmerge()
    elif not off:
        module.merge()
    return module.get_base_layer()


def _untie(model: Any) -> None:
    # A trained copy of a head stands beside the embeddings that it was tied to.
    if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if None not in ends and ends[0].weight is not ends[1].weight:
            model.config.tie_word_embeddings = False


def save_adapter(model: nn.Module, directory: str | Path, *, base: str) -> Path:
    """Write the attached adapters as peft does, for `PeftModel.from_pretrained(load(base), directory)`.

    Args:
        model: A model with the adapters.
        directory: The folder for the adapters, which must not exist, or be empty.
        base: The pruned model's folder, which the adapters belong to.

    Raises:
        ModelError: The folder is not empty, or cannot be written; nothing is left behind then.
    """
    path = Path(directory).expanduser()
    adapter, config = next(iter(vars(model)["peft_config"].items()))
    config = copy.copy(config)
    with compacted(model):  # as the blocks are numbered in the folder
        names = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
        found = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
        # As in peft's own wrapper around the model.
        tensors = {f"base_model.model.{name}": tensor.contiguous().cpu() for name, tensor in found.items()}
    config.target_modules, config.exclude_modules = set(names), None
    config.base_model_name_or_path, config.task_type, config.inference_mode = base, "CAUSAL_LM", True
    try:
        with folder_aside(path) as aside:
            config.save_pretrained(str(aside))
            save_file(tensors, str(aside / "adapter_model.safetensors"), metadata={"format": "pt"})
            write_sums(aside)
    except OSError as error:
        raise ModelError(f"cannot save the adapter as {directory}: {error}") from error
    return path


def _routers(model: nn.Module) -> list[str]:
    """Linear layers of experts' routers, by name: they return more than their product, which peft cannot adapt."""
    with torch.no_grad():
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and type(module).forward is not nn.Linear.forward
            and not isinstance(module.forward(module.weight.new_zeros(1, module.in_features)), Tensor)
        ]
