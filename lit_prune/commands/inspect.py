"""`lit-prune inspect`: the anatomy of a model and what each part costs, from its config alone."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from json import dumps

from lit_prune.commands.arguments import call
from lit_prune.errors import ModelError

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def inspect_model(
    model: str,
    *,
    context: int = 2048,
    dtype: str | None = None,
    json: bool = False,
    all: bool = False,
    layout: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Show the sublayers of a model, what each costs and what can be done with it, without reading weights.

    Args:
        model: A hub name, a folder (its config.json is enough), a GGUF file, or package:NAME for the GGUF file inside
            an installed package.
        context: Tokens before the one whose arithmetic is counted; fewer where the model is made for fewer.
        dtype: Data type that weights and cache are counted in, such as bfloat16; by default that of the config, else
            bfloat16.
        json: Print JSON, and nothing else, to the standard output.
        all: Show every block, where blocks that are the same stand together otherwise.
        layout: YAML or JSON file that describes blocks which are not understood; the reference page of architectures
            has its fields.
        trust_remote_code: Run code that comes with the model.
    """
    from lit_prune.costs import take_inventory
    from lit_prune.loading.models import skeleton
    from lit_prune.report import print_inventory

    bare = skeleton(model, layout=layout, trust_remote_code=trust_remote_code)
    inventory = take_inventory(bare, model, context=context, dtype=_dtype(bare, dtype))
    if json:
        print(dumps(asdict(inventory), indent=2))
    else:
        print_inventory(inventory, every_block=all)


run = partial(call, inspect_model, flags=["json", "all"], looks=False)


def _dtype(model: PreTrainedModel, name: str | None) -> torch.dtype:
    import torch

    from lit_prune.anatomy import decoder_config

    stated = name or decoder_config(model).dtype or model.config.dtype or torch.bfloat16
    found = stated if isinstance(stated, torch.dtype) else getattr(torch, stated, None)
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise ModelError(f"{stated!r} is not a dtype of weights; expected bfloat16, float16, float32 or float8_e4m3fn")
