"""The model's config after a removal: the record of what is gone, and an attention cache that stays right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from lit_prune.anatomy import Anatomy
from lit_prune.plan import SublayerId

RECORD_VERSION = 1


def sharing_modes(anatomy: Anatomy, gone: Iterable[SublayerId]) -> list[str | None]:
    """Transformers' `kv_sharing_modes`, one per block: a block without attention keeps no cache.

    Renumbering `layer_idx` instead would break models that mix sliding windows and full attention.
    """
    without = {each.block for each in (*anatomy.removed, *gone) if each.kind == "attention"}
    return ["reuse" if block in without else None for block in range(anatomy.num_blocks)]


def record_removal(model: Any, anatomy: Anatomy) -> None:
    """Write what is gone into the live config, so that whatever saves the model saves the record too.

    `per_layer_config` is transformers' coming standard for skipped sublayers; 5.x builds the layers all the same,
    so lit-prune reads only its own `lit_prune` entry.
    """
    config = model.config.get_text_config(decoder=True)
    config.lit_prune = {"version": RECORD_VERSION, "removed": [str(each) for each in anatomy.removed]}
    skips: dict[int | str, dict[str, Any]] = defaultdict(lambda: {"skip": []})
    for each in anatomy.removed:
        skips[each.block]["skip"].append(each.kind)
    config.per_layer_config = dict(skips)
    config.kv_sharing_modes = sharing_modes(anatomy, ())
    if None not in config.kv_sharing_modes:
        # Without any attention there is nothing to cache, and a cache of dummies has no length.
        config.use_cache = False
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.use_cache = False
