"""Where the sublayers are: found by structure, refused with what was found when it is not understood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lit_prune.anatomy.blocks import BlockAnatomy
from lit_prune.anatomy.layouts import CONTEXT_LENGTHS, LAYER_TYPES, Layout
from lit_prune.anatomy.parameters import shared_parameters
from lit_prune.anatomy.record import RECORD_KEY, Record
from lit_prune.anatomy.sublayers import Anatomy
from lit_prune.errors import AnatomyError
from lit_prune.plan import KINDS, SublayerId


def language_model(model: nn.Module) -> Any:
    """The Hugging Face model itself, without a peft wrapper around it; refused as `require_no_prompt` does."""
    unwrap = getattr(model, "get_base_model", None)
    if not callable(unwrap):
        return model
    require_no_prompt(model)
    return unwrap()


def require_no_prompt(module: nn.Module) -> None:
    """Refuse with an AnatomyError trained prompts of peft around a model or in what holds it (such as prefix tuning).

    What is scored without them would not be what is trained.
    """
    for wrapper in module.modules():
        configs = getattr(wrapper, "peft_config", None)
        for config in configs.values() if isinstance(configs, Mapping) else ():
            if getattr(config, "is_prompt_learning", False):
                kind = getattr(config.peft_type, "value", config.peft_type)
                raise AnatomyError(
                    f"a {type(wrapper).__name__} puts a trained prompt before the model's input ({kind}), which is no "
                    "part of the model: sublayers would be scored without it. Prune the model, then train a prompt"
                )


def find_sublayers(model: nn.Module) -> Anatomy:
    """Find every attention and FFN sublayer of a decoder-only Hugging Face model.

    Args:
        model: A causal language model of transformers, or a vision-language model with such a decoder; on any device
            (meta too), perhaps pruned or wrapped by peft.

    Raises:
        AnatomyError: The model is an encoder-decoder, has no decoder blocks, or its blocks are of an unknown form.
    """
    model = language_model(model)
    config = decoder_config(model)
    record = Record.of(config)
    layout = None if record.layout is None else Layout.read(record.layout)
    _require_plain_cache(config)
    path, blocks = _block_list(model, config.num_hidden_layers, layout)
    numbers = record.blocks or tuple(range(len(blocks)))
    if len(numbers) != len(blocks):
        raise AnatomyError(f"the config's record names {len(numbers)} blocks, the model has {len(blocks)}")
    found = [
        BlockAnatomy(block, f"{path}.{position}", numbers[position], config, layout)
        for position, block in enumerate(blocks)
    ]
    present = tuple(sublayer for block in found for sublayer in block.sublayers)
    num_blocks = record.num_blocks or len(blocks)
    here = {sublayer.id for sublayer in present}
    original = (SublayerId(number, kind) for number in range(num_blocks) for kind in KINDS)
    num_parameters, common = shared_parameters(model)
    return Anatomy(
        model_type=config.model_type,
        blocks_path=path,
        num_blocks=num_blocks,
        blocks=numbers,
        hidden_size=config.hidden_size,
        num_parameters=num_parameters,
        sublayers=present,
        removed=tuple(sublayer for sublayer in original if sublayer not in here),
        paths={sublayer: place for block in found for sublayer, place in block.paths.items()},
        shared={number: block.shared for number, block in zip(numbers, found, strict=True)},
        passes_through=all(block.passes_through for block in found),
        common=common,
    )


def decoder_config(model: nn.Module) -> Any:
    """The config of the decoder: a vision-language model has one of its own for the text.

    Raises:
        AnatomyError: The model is none of Hugging Face's, an encoder-decoder, or has no decoder blocks.
    """
    config = getattr(language_model(model), "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise AnatomyError(f"{type(model).__name__} is no Hugging Face model: it has no transformers config")
    if getattr(config, "is_encoder_decoder", False):
        raise AnatomyError(f"{type(model).__name__} is an encoder-decoder; only decoder-only models can be pruned")
    config = config.get_text_config(decoder=True)
    if not getattr(config, "num_hidden_layers", 0):
        raise AnatomyError(f"{type(model).__name__} has no decoder blocks: its config states no num_hidden_layers")
    return config


def context_length(config: Any) -> int | None:
    """How many tokens a model is made for, by whatever name the text part of its config has; else None."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    found = (getattr(text, name, None) for name in CONTEXT_LENGTHS)
    return next((number for number in found if isinstance(number, int) and number > 0), None)


def _require_plain_cache(config: Any) -> None:
    """Refuse models whose attention cache is not one list of keys and values per block."""
    shares = hasattr(type(config), "kv_sharing_modes")
    if shares or (getattr(config, "is_heterogeneous", False) and not hasattr(config, RECORD_KEY)):
        raise AnatomyError(
            f"{config.model_type} shares its attention cache between layers or sets layers apart by itself; "
            "removing sublayers from such a model is not supported"
        )
    if other := sorted(set(getattr(config, "layer_types", None) or ()) - set(LAYER_TYPES)):
        raise AnatomyError(
            f"{config.model_type} has layers of the type {', '.join(other)}; understood are {', '.join(LAYER_TYPES)}"
        )


def _block_list(model: Any, length: int, layout: Layout | None) -> tuple[str, nn.ModuleList]:
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if layout is not None and layout.blocks is not None:
        # The path is the whole model's, and this may be its body.
        found = [name for name in lists if f".{layout.blocks}".endswith(f".{name}")]
        if not found:
            raise AnatomyError(f"the layout says blocks: {layout.blocks}; module lists found: {_listed(lists)}")
        longest = max(found, key=len)
        return longest, lists[longest]
    fitting = {name: module for name, module in lists.items() if len(module) == length}
    # Lists inside blocks (experts), and towers that see and hear, may be as long by chance.
    fitting = {name: fitting[name] for name in fitting if not any(name.startswith(f"{other}.") for other in fitting)}
    if len(fitting) > 1:
        decoder = model.get_decoder()
        path = next((name for name, module in model.named_modules() if module is decoder), "")
        fitting = {name: fitting[name] for name in fitting if name.startswith(f"{path}.")}
    if len(fitting) != 1:
        raise AnatomyError(
            f"{type(model).__name__} has {len(fitting)} module lists of {length} decoder blocks "
            f"(its num_hidden_layers), expected one; module lists found: {_listed(lists)}. "
            "A layout with `blocks: PATH` says which: the reference page of architectures says how"
        )
    return fitting.popitem()


def _listed(lists: dict[str, nn.ModuleList]) -> str:
    return ", ".join(f"{name} with {len(module)}" for name, module in lists.items()) or "none"
