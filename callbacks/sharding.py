"""What a strategy that shards the model over processes (FSDP2) asks of the callbacks."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_prune.errors import LitPruneError
from lit_prune.loading.fsdp import TENSOR, require_shardable
from lit_prune.pruning import Pruner

from .mending import Mending


def shards(trainer: L.Trainer) -> bool:
    """Whether the trainer's strategy lets a module shard its model."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def require_possible(trainer: L.Trainer, pruner: Pruner, unit: str, mending: Mending) -> None:
    """Refuse what cannot be done with a sharded model.

    Args:
        trainer: With its strategy.
        pruner: Before its first step.
        unit: Of the amount.
        mending: Of the model.

    Raises:
        LitPruneError: With what cannot.
    """
    if not shards(trainer):
        return
    require_shardable(pruner.scorer, unit, pruner.plan.compensation.get("name", "none"))
    if mending.distillation is not None:
        raise LitPruneError(
            "distill brings removed sublayers back for the teacher's pass, and FSDP2 gathers their weights no more; "
            "heal without distill, or use a single device or strategy='ddp'"
        )


def require_whole_layers(trainer: L.Trainer) -> None:
    """Refuse a mesh that splits single layers.

    Raises:
        LitPruneError: It does.
    """
    if shards(trainer) and trainer.strategy.device_mesh[TENSOR].size() > 1:  # type: ignore[attr-defined]
        raise LitPruneError(
            "tensor parallelism splits single layers, which cannot be scored yet; give ModelParallelStrategy "
            "tensor_parallel_size=1 and a data_parallel_size of all processes"
        )


def require_whole_model(trainer: L.Trainer, what: str, remedy: str) -> None:
    """Refuse, for what runs the model on one process alone.

    Args:
        trainer: With its strategy.
        what: Runs it.
        remedy: What to change in its settings.

    Raises:
        LitPruneError: The strategy shards it.
    """
    if shards(trainer):
        raise LitPruneError(
            f"{what} wants the whole model in one process, and {type(trainer.strategy).__name__} shards it; {remedy}, "
            "or use a single device or strategy='ddp'"
        )
