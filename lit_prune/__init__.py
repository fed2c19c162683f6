"""lit-prune: smaller, faster language models inside the PyTorch Lightning loop that you already have."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lit_prune import autoload

if TYPE_CHECKING:
    from lit_prune.autoload import teach_loaders
    from lit_prune.checkpoint import restore_structure
    from lit_prune.data import TextDataModule
    from lit_prune.errors import LitPruneError
    from lit_prune.healing import Distillation, LoraHealing, merge
    from lit_prune.models import load, load_tokenizer
    from lit_prune.module import LitCausalLM
    from lit_prune.plan import PrunePlan
    from lit_prune.pruning import apply_plan, prune
    from lit_prune.sharding import shard
    from lit_prune.surgery import describe

__all__ = [
    "Distillation",
    "LitCausalLM",
    "LitPruneError",
    "LoraHealing",
    "PrunePlan",
    "TextDataModule",
    "apply_plan",
    "describe",
    "load",
    "load_tokenizer",
    "merge",
    "prune",
    "restore_structure",
    "shard",
    "teach_loaders",
]

_ROOMS = {
    "LitCausalLM": "module",
    "LitPruneError": "errors",
    "Distillation": "healing",
    "LoraHealing": "healing",
    "PrunePlan": "plan",
    "TextDataModule": "data",
    "apply_plan": "pruning",
    "describe": "surgery",
    "load": "models",
    "load_tokenizer": "models",
    "merge": "healing",
    "prune": "pruning",
    "restore_structure": "checkpoint",
    "shard": "sharding",
    "teach_loaders": "autoload",
}

autoload.install()


def __getattr__(name: str) -> Any:
    # torch, lightning and transformers take ten seconds to import; `lit-prune --help` needs none of them.
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
