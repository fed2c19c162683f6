"""lit-prune: smaller, faster language models inside the PyTorch Lightning loop that you already have."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lit_prune.loading import autoload, moved

if TYPE_CHECKING:
    from lit_prune.data import TextDataModule
    from lit_prune.errors import LitPruneError
    from lit_prune.healing import merge
    from lit_prune.loading.autoload import teach_loaders
    from lit_prune.loading.fsdp import shard
    from lit_prune.loading.models import load, load_tokenizer
    from lit_prune.plan import Distillation, LoraHealing, PrunePlan
    from lit_prune.pruning import apply_plan, compensate_plan, front_of, prune, speculative
    from lit_prune.surgery import describe
    from lit_prune.training import LitCausalLM, restore_structure

__all__ = [
    "Distillation",
    "LitCausalLM",
    "LitPruneError",
    "LoraHealing",
    "PrunePlan",
    "TextDataModule",
    "apply_plan",
    "compensate_plan",
    "describe",
    "front_of",
    "load",
    "load_tokenizer",
    "merge",
    "prune",
    "restore_structure",
    "shard",
    "speculative",
    "teach_loaders",
]

_MODULES = {
    "LitCausalLM": "training",
    "LitPruneError": "errors",
    "Distillation": "plan",
    "LoraHealing": "plan",
    "PrunePlan": "plan",
    "TextDataModule": "data",
    "apply_plan": "pruning",
    "compensate_plan": "pruning",
    "describe": "surgery",
    "front_of": "pruning",
    "load": "loading.models",
    "load_tokenizer": "loading.models",
    "merge": "healing",
    "prune": "pruning",
    "restore_structure": "training",
    "shard": "loading.fsdp",
    "speculative": "pruning",
    "teach_loaders": "loading.autoload",
}

autoload.install()
moved.install()


def __getattr__(name: str) -> Any:
    # torch, lightning and transformers take ten seconds to import; `lit-prune --help` needs none of them.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
