"""Smaller, faster language models inside the PyTorch Lightning loop that you already have.

A transformer block adds two things to its residual stream, attention and an FFN, and each can be taken out alone. In a
Lightning `Trainer` a callback does so between epochs:

    import lightning as L
    from lit_prune import LitCausalLM, TextDataModule
    from lit_prune.callbacks import SublayerPruneCallback

    pruning = SublayerPruneCallback(amount=0.2, healing=True, save_to="pruned")
    trainer = L.Trainer(max_epochs=5, callbacks=[pruning])
    trainer.fit(LitCausalLM("name/of-a-model"), TextDataModule("text.jsonl"))

Without training:

    import lit_prune

    model = lit_prune.load("name/of-a-model")
    tokenizer = lit_prune.load_tokenizer("name/of-a-model")
    windows = lit_prune.drawn_windows("text.jsonl", tokenizer, window=512, wanted=32, seed=0)
    plan = lit_prune.prune(model, lit_prune.calibration_batches(windows, 8), amount=0.2, compensate="refit")
    lit_prune.save(model, "pruned", tokenizer=tokenizer, plan=plan)

What is listed here and in `lit_prune.callbacks` is stable: a name or an argument leaves one minor version after a
`DeprecationWarning` said so. All else may change with any version.

- Models: `load`, `load_tokenizer`, `save`, `export_model`, `describe`, `shard`, `teach_loaders`
- Text: `TextDataModule`, `drawn_windows`, `calibration_batches`
- Pruning: `prune`, `PrunePlan`, `apply_plan`, `front_of`, `dial`, `refit`, `compensate_plan`
- Healing: `heal`, `HealingSettings`, `LoraHealing`, `DenseTeacher`, `merge`, `Distillation`
- Measuring: `perplexity`, `task_scores`, `compare_speed`
- Drafts: `speculative`
- Lightning: `LitCausalLM`, `restore_structure`, and the callbacks
- Errors: `LitPruneError`, of which are `AnatomyError`, `BudgetError`, `DataError`, `MeasureError`, `ModelError`,
  `PlanError`
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lit_prune.loading import autoload, moved

if TYPE_CHECKING:
    from lit_prune.data import TextDataModule, calibration_batches, drawn_windows
    from lit_prune.errors import (
        AnatomyError,
        BudgetError,
        DataError,
        LitPruneError,
        MeasureError,
        ModelError,
        PlanError,
    )
    from lit_prune.evaluation import compare_speed, perplexity, task_scores
    from lit_prune.export import export_model, save
    from lit_prune.healing import DenseTeacher, heal, merge
    from lit_prune.loading.autoload import teach_loaders
    from lit_prune.loading.fsdp import shard
    from lit_prune.loading.models import load, load_tokenizer
    from lit_prune.plan import Distillation, HealingSettings, LoraHealing, PrunePlan
    from lit_prune.pruning import apply_plan, compensate_plan, dial, front_of, prune, refit, speculative
    from lit_prune.surgery import describe
    from lit_prune.training import LitCausalLM, restore_structure

__all__ = [
    "AnatomyError",
    "BudgetError",
    "DataError",
    "DenseTeacher",
    "Distillation",
    "HealingSettings",
    "LitCausalLM",
    "LitPruneError",
    "LoraHealing",
    "MeasureError",
    "ModelError",
    "PlanError",
    "PrunePlan",
    "TextDataModule",
    "__version__",
    "apply_plan",
    "calibration_batches",
    "compare_speed",
    "compensate_plan",
    "describe",
    "dial",
    "drawn_windows",
    "export_model",
    "front_of",
    "heal",
    "load",
    "load_tokenizer",
    "merge",
    "perplexity",
    "prune",
    "refit",
    "restore_structure",
    "save",
    "shard",
    "speculative",
    "task_scores",
    "teach_loaders",
]

_MODULES = {
    "TextDataModule": "data",
    "calibration_batches": "data",
    "drawn_windows": "data",
    "AnatomyError": "errors",
    "BudgetError": "errors",
    "DataError": "errors",
    "LitPruneError": "errors",
    "MeasureError": "errors",
    "ModelError": "errors",
    "PlanError": "errors",
    "compare_speed": "evaluation",
    "perplexity": "evaluation",
    "task_scores": "evaluation",
    "export_model": "export",
    "save": "export",
    "DenseTeacher": "healing",
    "heal": "healing",
    "merge": "healing",
    "teach_loaders": "loading.autoload",
    "shard": "loading.fsdp",
    "load": "loading.models",
    "load_tokenizer": "loading.models",
    "Distillation": "plan",
    "HealingSettings": "plan",
    "LoraHealing": "plan",
    "PrunePlan": "plan",
    "apply_plan": "pruning",
    "compensate_plan": "pruning",
    "dial": "pruning",
    "front_of": "pruning",
    "prune": "pruning",
    "refit": "pruning",
    "speculative": "pruning",
    "describe": "surgery",
    "LitCausalLM": "training",
    "restore_structure": "training",
}

autoload.install()
moved.install()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("lit-prune")
    # torch, lightning and transformers take ten seconds to import; `lit-prune --help` needs none of them.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
