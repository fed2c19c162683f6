"""What pruning asks of a trainer and of the callbacks and averages around it: checked at set-up, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, ModelPruning
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lit_prune.errors import LitPruneError
from lit_prune.loading.fsdp import TENSOR
from lit_prune.loading.trees import is_a
from lit_prune.pruning import Pruner, require_shardable

from .followers import averages_in, averaging_callbacks, copies_in
from .mending import Mending
from .trainers import callbacks_of, leaves_nothing, model_in, shards

SAME_AT_ANY_SIZE = ("epoch", "step")
"""What can be monitored to keep the latest."""


def require_supported(trainer: L.Trainer, *, folds: bool = False) -> None:
    """Refuse strategies and callbacks under which removal is not known to be right, or what is folded into weights."""
    strategy = trainer.strategy
    if not is_a(strategy, SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy):
        raise LitPruneError(
            f"{type(strategy).__name__} is not supported; use a single device, strategy='ddp', or "
            "ModelParallelStrategy, which shards the model (FSDP2)"
        )
    if is_a(strategy, ModelParallelStrategy) and strategy.device_mesh[TENSOR].size() > 1:
        raise LitPruneError(
            "tensor parallelism splits single layers, which cannot be scored yet; give ModelParallelStrategy "
            "tensor_parallel_size=1 and a data_parallel_size of all processes"
        )
    if folds and any(is_a(callback, ModelPruning) for callback in callbacks_of(trainer)):
        raise LitPruneError(
            "ModelPruning computes every weight anew from its masks, which undoes what healing and compensate fold in; "
            "leave one out"
        )


def against_refit(trainer: L.Trainer, module: nn.Module, model: nn.Module, mending: Mending) -> str | None:
    """Why weights that stay are better left as they are in a training, where nobody asked for their change."""
    if mending.finds_others(model):
        return "the model has adapters of yours, which are for the weights as they are"
    if averaging_callbacks(trainer) or averages_in(module, model):
        return "weights are averaged over the training"
    if any(is_a(callback, ModelPruning) for callback in callbacks_of(trainer)):
        return "ModelPruning computes every weight anew from its masks"
    return "the strategy shards the model" if shards(trainer) else None


def require_own_process(trainer: L.Trainer) -> None:
    """Refuse launchers that train in processes of their own, which take the pruned model away with them.

    Lightning gives the process that called `fit` the weights alone, for the layers that its dense model still has.
    """
    if is_a(launcher := trainer.strategy.launcher, _MultiProcessingLauncher):
        start = launcher._start_method
        raise LitPruneError(
            f"the trainer starts its processes by {start} (strategy ddp_{start}, or ddp_notebook), so your own model "
            "would stay as it is while copies of it are pruned; use strategy='ddp' in a script, or devices=1 in a "
            "notebook"
        )


def require_scored_in_shards(trainer: L.Trainer, pruner: Pruner, unit: str, mending: Mending) -> None:
    """Refuse what cannot be measured or taught where the strategy shards the model."""
    if not shards(trainer):
        return
    require_shardable(pruner, unit)
    if mending.distillation is not None:
        raise LitPruneError(
            "distill brings removed sublayers back for the teacher's pass, and FSDP2 gathers their weights no more; "
            "heal without distill, or use a single device or strategy='ddp'"
        )


def require_whole_model(trainer: L.Trainer, what: str, remedy: str) -> None:
    """Refuse a strategy that shards the model, for what runs it on one process alone."""
    if shards(trainer):
        raise LitPruneError(
            f"{what} wants the whole model in one process, and {type(trainer.strategy).__name__} shards it; {remedy}, "
            "or use a single device or strategy='ddp'"
        )


def require_averages_follow(
    trainer: L.Trainer, module: nn.Module, pruning: Callback, pruner: Pruner, mending: Mending
) -> None:
    """Refuse averaged models that could not follow the trained one; warn of other copies, which stay as they are."""
    callbacks, averaging = callbacks_of(trainer), averaging_callbacks(trainer)
    inside = averages_in(module, pruner.model)
    for callback in averaging:
        if callbacks.index(callback) < callbacks.index(pruning):
            raise LitPruneError(
                f"{type(callback).__name__} copies the model before {type(pruning).__name__} has prepared it; "
                "add it behind that one"
            )
    if inside and mending.lora is not None:
        raise LitPruneError(
            f"the AveragedModel at {next(iter(inside))!r} has copied the model without adapters, and pairs parameters "
            "by their position; leave healing out, or take EMAWeightAveraging behind the callback instead"
        )
    for name in [*(type(callback).__name__ for callback in averaging), *(["AveragedModel"] if inside else [])]:
        _require_same_weights(name, pruner, mending)
        require_whole_model(trainer, name, "take it out")
    for path in copies_in(module, pruner.model):
        rank_zero_warn(
            f"the module holds another copy of the model at {path!r}, which stays as it is: right for a teacher; an "
            "average made by hand would mix layers, so let torch's AveragedModel or EMAWeightAveraging make it"
        )


def warn_of_monitors(trainer: L.Trainer, last_drop: int | None) -> None:
    """Say which callbacks compare models of different sizes by a figure that is best where least was removed.

    The last epoch that drops is 0-based, and None where nobody knows it.
    """
    if last_drop is not None and last_drop < (trainer.check_val_every_n_epoch or 1):
        return  # what is validated has its last size from the first validation on
    names = [
        f"{type(callback).__name__}(monitor={callback.monitor!r})"
        for callback in callbacks_of(trainer)
        if (is_a(callback, ModelCheckpoint) or is_a(callback, EarlyStopping))
        and callback.monitor not in (None, *SAME_AT_ANY_SIZE)
        and getattr(callback, "save_top_k", 1) > 0  # who keeps all compares nothing
    ]
    if names and not leaves_nothing(trainer):
        rank_zero_warn(
            f"{' and '.join(names)} will compare models of different sizes, and a loss or perplexity is best where "
            "least was removed: let ModelCheckpoint keep the latest (no monitor) and leave EarlyStopping out, or drop "
            "everything before the first validation (schedule=0.2 beside amount=0.2)"
        )


def require_together(callbacks: Sequence[Any], module: L.LightningModule) -> None:
    """Refuse several callbacks that prune in one training what they cannot prune together: `SublayerPruneCallback`s."""
    if len(callbacks) == 1:
        return
    several = f"{len(callbacks)} {type(callbacks[0]).__name__}s"
    if len({id(model_in(module, callback.model)) for callback in callbacks}) > 1:
        raise LitPruneError(f"{several} prune different models, and a checkpoint holds the structure of one; keep one")
    if len({callback.course.recipe.granularity for callback in callbacks}) < len(callbacks):
        raise LitPruneError(f"{several} need a granularity each (attention and mlp); with the same, let one do it all")
    if any(callback.course.allowance.goal.max_rise is not None for callback in callbacks):
        raise LitPruneError(f"{several} would each measure the rise from a model of its own; give amounts, no max_rise")
    if any(callback.mending.lora is not None for callback in callbacks[1:]):
        raise LitPruneError(f"of {several} only the first can heal, which merges the adapters before the others save")
    if len({repr(callback.course.recipe.compensate) for callback in callbacks}) > 1:
        raise LitPruneError(f"{several} need the same compensate, which their one plan tells")


def _require_same_weights(average: str, pruner: Pruner, mending: Mending) -> None:
    compensation = pruner.plan.compensation.get("name", "none")
    if mending.distillation is not None or compensation != "none":
        what = "distill" if mending.distillation is not None else f"compensate={compensation!r}"
        raise LitPruneError(f"{average} averages weights from before and after {what} changes them; leave one out")
