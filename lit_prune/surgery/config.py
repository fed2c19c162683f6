"""The model's config after a removal: the record of what is gone, and an attention cache that stays right."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from lit_prune.anatomy import RECORD_KEY, Anatomy, Record, decoder_config, find_sublayers, language_model
from lit_prune.errors import AnatomyError
from lit_prune.plan import SublayerId

CACHE_KEY = "kv_sharing_modes"
_ABSENT: Any = object()


def describe(model: Any, layout: Mapping[str, Any]) -> None:
    """Say how the decoder blocks of a model are built that lit-prune does not understand by itself.

    The description goes into the model's config and is saved with it. Keys are the attributes of
    `lit_prune.anatomy.Layout`; the reference page of architectures explains them.

    Args:
        model: A causal language model of transformers, unpruned.
        layout: A description such as `{"attention": "mixer", "attention_norms": ["norm_a"], "mlp": ["up", "down"]}`.

    Raises:
        AnatomyError: The description is no layout, or does not fit the model, which is as it was then.
    """
    config = decoder_config(model)
    put_back = remember([vars(config)], [RECORD_KEY])
    replace(Record.of(config), layout=layout).write(config)
    try:
        find_sublayers(model)
    except AnatomyError:
        put_back()
        raise


def record_removal(model: Any, anatomy: Anatomy) -> None:
    """Write what is gone into the live config, so that whatever saves the model saves the record too.

    Neither the `lit_prune` entry nor `per_layer_config` is written where nothing of the list is gone.
    """
    config = decoder_config(model)
    closed_up = anatomy.blocks != tuple(range(anatomy.num_blocks))
    record = replace(Record.of(config), removed=anatomy.removed)
    (replace(record, blocks=anatomy.blocks, num_blocks=anatomy.num_blocks) if closed_up else record).write(config)
    skips: dict[int | str, dict[str, Any]] = defaultdict(lambda: {"skip": []})
    for sublayer in anatomy.removed:
        if sublayer in anatomy.paths:
            skips[anatomy.position(sublayer.block)]["skip"].append(sublayer.kind)
    set_skips(config, dict(skips))
    set_cache(model, anatomy)


def set_skips(config: Any, skips: Mapping[int | str, Mapping[str, Sequence[str]]]) -> None:
    """Write which sublayers are skipped, by block, as `per_layer_config`, or that none is.

    It is transformers' coming standard; 5.x builds the layers all the same, so lit-prune reads only its own entry.
    """
    if skips or hasattr(PreTrainedConfig(), "per_layer_config"):
        config.per_layer_config = skips or None
    else:  # this version has no such entry
        vars(config).pop("per_layer_config", None)


def stock_config(model: Any) -> Any:
    """A copy of a model's config as it would be, had nothing been removed from the blocks that are in the list."""
    config = copy.deepcopy(language_model(model).config)
    decoder = config.get_text_config(decoder=True)
    set_skips(decoder, {})
    for name in (RECORD_KEY, CACHE_KEY):
        vars(decoder).pop(name, None)
    decoder.use_cache = True
    return config


def record_bias(model: Any, sublayer: SublayerId, path: str) -> None:
    """Write into the live config that the projection at a path inside a sublayer has a bias, as stock models do not."""
    config = decoder_config(model)
    record = Record.of(config)
    replace(record, biases={**record.biases, str(sublayer): path}).write(config)


def make_biases(model: Any, biases: Mapping[str, str]) -> None:
    """Record these biases, paths of projections by their sublayers, in the place of all others, and make them."""
    config = decoder_config(model)
    replace(Record.of(config), biases=dict(biases)).write(config)
    make_recorded_biases(model)


def make_recorded_biases(model: Any) -> None:
    """Give the projections that the config names a bias, zeros until weights are loaded.

    An AnatomyError says so where the config names something else.
    """
    modules = dict(model.named_modules())
    for place in recorded_biases(model):
        projection = modules.get(place)
        if projection is None or getattr(projection, "weight", None) is None:
            raise AnatomyError(f"the record in the model's config gives a bias to {place}, which is no projection")
        projection.bias = nn.Parameter(projection.weight.new_zeros(projection.weight.shape[0]))


def recorded_biases(model: Any) -> list[str]:
    """Module paths of the projections of sublayers that are present to which the config gives a bias."""
    anatomy, biases = find_sublayers(model), Record.of(decoder_config(model)).biases
    present = {SublayerId.parse(name): path for name, path in biases.items() if SublayerId.parse(name) in anatomy}
    return [".".join(filter(None, (anatomy[sublayer].path, path))) for sublayer, path in present.items()]


def set_cache(model: Any, anatomy: Anatomy, muted: Iterable[SublayerId] = ()) -> Callable[[], None]:
    """Say in the config which blocks have no attention, and so no cache; returns a function that puts back what was.

    Renumbering `layer_idx` instead would break models that mix sliding windows and full attention. Without any
    attention there is nothing to cache, and a cache of dummies has no length: `generate` goes without.
    """
    without = {sublayer.block for sublayer in (*anatomy.removed, *muted) if sublayer.kind == "attention"}
    modes = ["reuse" if block in without else None for block in anatomy.blocks]
    config, generation = decoder_config(model), getattr(model, "generation_config", None)
    owners = [vars(own) for own in (config, generation) if own is not None]
    put_back = remember(owners, [CACHE_KEY, "use_cache"])
    if any(modes):
        setattr(config, CACHE_KEY, modes)
    else:
        vars(config).pop(CACHE_KEY, None)
    if None not in modes:
        for own in owners:
            own["use_cache"] = False
    return put_back


def remember(owners: Iterable[dict[str, Any]], names: Sequence[str]) -> Callable[[], None]:
    """Remember some entries of dicts; the function that is returned puts them back as they are now, absent ones too."""
    before = [(own, name, own.get(name, _ABSENT)) for own in owners for name in names]

    def put_back() -> None:
        for own, name, value in before:
            if value is _ABSENT:
                own.pop(name, None)
            else:
                own[name] = value

    return put_back
