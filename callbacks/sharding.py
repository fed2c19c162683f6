"""What a strategy that shards the model over processes (FSDP2) asks of the callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from transformers import PreTrainedModel

from lit_prune.checkpoint import follow_state_dict, follow_strategy
from lit_prune.errors import LitPruneError
from lit_prune.healing import LoraHealing, attached_lora
from lit_prune.plan import PrunePlan
from lit_prune.pruner import Pruner
from lit_prune.sharding import TENSOR, require_shardable
from lit_prune.surgery import removed_sublayers


def shards(trainer: L.Trainer) -> bool:
    """Whether the trainer's strategy lets a module shard its model."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def require_possible(trainer: L.Trainer, pruner: Pruner, unit: str, *, distill: bool) -> None:
    """Refuse what cannot be done with a sharded model.

    Args:
        trainer: With its strategy.
        pruner: Before its first step.
        unit: Of the amount.
        distill: Whether the dense model teaches.

    Raises:
        LitPruneError: With what cannot.
    """
    if not shards(trainer):
        return
    require_shardable(pruner.scorer, unit, pruner.plan.compensation.get("name", "none"))
    if distill:
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


def follow_checkpoint(
    trainer: L.Trainer, model: PreTrainedModel, lora: LoraHealing | None, state_key: str
) -> Callable[[], None]:
    """Bring the model to the structure of the checkpoint that a trainer restores, right before its weights.

    Args:
        trainer: Whose strategy loads it.
        model: Sharded, perhaps later.
        lora: Settings for adapters that the checkpoint has and the model lacks.
        state_key: Of the callback, in the checkpoint.

    Returns:
        A function that ends this.
    """
    hook = follow_state_dict(model, lora)
    if not shards(trainer):
        return hook.remove

    def recorded(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
        plan = checkpoint.get("callbacks", {}).get(state_key, {}).get("plan")
        if plan is None:
            return None
        gone = {*PrunePlan.from_dict(plan).removed, *removed_sublayers(model)}
        lora = attached_lora(model)
        return {"removed": [str(each) for each in sorted(gone)], "lora": asdict(lora) if lora else None}

    unfollow = follow_strategy(trainer.strategy, model, recorded)

    def end() -> None:
        hook.remove()
        unfollow()

    return end
