"""What a trainer may have around pruning: strategies and callbacks that go with it, and what to say of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping, ModelCheckpoint, ModelPruning
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_warn

from lit_prune.errors import LitPruneError
from lit_prune.surgery import cut_groups

from . import sharding

SAME_AT_ANY_SIZE = ("epoch", "step")
"""What can be monitored to keep the latest."""


def require_supported(trainer: L.Trainer, *, folds: bool = False) -> None:
    """Refuse strategies and callbacks under which removal or healing is not known to be right.

    Args:
        trainer: With its strategy and callbacks.
        folds: Whether adapters or a compensation are to be folded into the weights.

    Raises:
        LitPruneError: With what works.
    """
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        raise LitPruneError(
            f"{type(trainer.strategy).__name__} is not supported; use a single device, strategy='ddp', or "
            "ModelParallelStrategy, which shards the model (FSDP2)"
        )
    sharding.require_whole_layers(trainer)
    if folds and any(isinstance(each, ModelPruning) for each in _callbacks(trainer)):
        raise LitPruneError(
            "ModelPruning computes every weight anew from its masks, which undoes what healing and compensate fold in; "
            "leave one out"
        )


def require_own_process(trainer: L.Trainer) -> None:
    """Refuse launchers that train in processes of their own, which take the pruned model away with them.

    Lightning gives the process that called `fit` the weights alone, for the layers that its dense model still has.

    Raises:
        LitPruneError: With strategies that work.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        start = launcher._start_method
        raise LitPruneError(
            f"the trainer starts its processes by {start} (strategy ddp_{start}, or ddp_notebook), so your own model "
            "would stay as it is while copies of it are pruned; use strategy='ddp' in a script, or devices=1 in a "
            "notebook"
        )


def warn_of_monitors(trainer: L.Trainer, last_drop: int | None) -> None:
    """Say which callbacks compare models of different sizes by a figure that is best where least was removed.

    Args:
        trainer: With its callbacks, before the first epoch.
        last_drop: Last epoch that drops, 0-based; None where nobody knows.
    """
    if last_drop is not None and last_drop < (trainer.check_val_every_n_epoch or 1):
        return  # what is validated has its last size from the first validation on
    names = [
        f"{type(each).__name__}(monitor={each.monitor!r})"
        for each in _callbacks(trainer)
        if isinstance(each, ModelCheckpoint | EarlyStopping)
        and each.monitor not in (None, *SAME_AT_ANY_SIZE)
        and getattr(each, "save_top_k", 1) > 0  # who keeps all compares nothing
    ]
    if names and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        rank_zero_warn(
            f"{' and '.join(names)} will compare models of different sizes, and a loss or perplexity is best where "
            "least was removed: let ModelCheckpoint keep the latest (no monitor) and leave EarlyStopping out, or drop "
            "everything before the first validation (schedule=0.2 beside amount=0.2)"
        )


def forget_names(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Let callbacks that keep names of parameters forget those that are gone; a resumed run would look for them."""
    left = {name for name, _ in module.named_parameters()}
    for each in _callbacks(trainer):
        if isinstance(each, BaseFinetuning):
            for groups in each._internal_optimizer_metadata.values():
                cut_groups(groups, left.__contains__)


def _callbacks(trainer: L.Trainer) -> Iterator[Any]:
    yield from trainer.callbacks  # type: ignore[attr-defined]
