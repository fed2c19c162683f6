"""How modules in training optimize: the mean over the tokens of a step, AdamW with a schedule, recomputed activations.

Lightning divides the loss of each batch by their number, and DDP averages over processes: the mean of means, in which
every token of a batch with few labels counts more. `TokenMean` makes the gradient that of the mean over all tokens.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import get_scheduler

from lit_prune.loading.processes import processes_of_trainer

UNIT = 1024
"""Tokens that a weight of 1 stands for until all are counted; a power of two, so that dividing by it rounds nothing."""


class TokenMean:
    """Weighs the batches of one module's optimizer steps by their tokens, as transformers' Trainer does.

    Batches of one process that are not accumulated are left alone, and so is a module that optimizes by hand.
    """

    def __init__(self) -> None:
        self._seen: tuple[Tensor, int] | None = None
        self._total: Tensor | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def saw(self, num_tokens: Tensor, batch_idx: int) -> None:
        """Take note, in `training_step`, of the tokens behind its mean loss."""
        self._seen = num_tokens.detach().float(), batch_idx

    def backward(self, module: L.LightningModule, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Do what a module does in its own `backward`, with the loss that Lightning gives it.

        That is the loss of a batch, divided by the number of batches and perhaps scaled; further arguments are those of
        `Tensor.backward`.
        """
        trainer, seen, self._seen = module.trainer, self._seen, None
        number = trainer.accumulate_grad_batches
        if seen is None or not module.automatic_optimization or (number == 1 and trainer.world_size == 1):
            loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
            return
        tokens, batch_idx = seen
        first = batch_idx % number == 0 or self._total is None
        self._total = tokens.clone() if first or self._total is None else self._total + tokens
        weight = tokens / UNIT
        if (batch_idx + 1) % number == 0 or trainer.is_last_batch:
            total = processes_of_trainer(trainer).mean(self._total)
            total = total.clamp(min=1 / trainer.world_size)  # where nothing is predicted
            # What came before is in the gradients already, and is scaled before the last backward pass: this is the
            # one in which DDP averages them, and behind which hooks look at them.
            if not first:
                _divide(trainer, total)
            weight, self._total = tokens / total, None
        (loss * (number * weight)).backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def finish(self, trainer: L.Trainer) -> None:
        """Count as well where a step's last batch was left out: its `training_step` returned None."""
        if self._total is not None:
            _divide(trainer, self._total.clamp(min=1))
            self._total = None


def _divide(trainer: L.Trainer, total: Tensor) -> None:
    # By optimizers: behind a pass, a module that FSDP2 shards holds other parameters for a while.
    groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
    for parameter in (parameter for group in groups for parameter in group["params"]):
        if parameter.grad is not None:
            parameter.grad.mul_(UNIT / total.to(parameter.grad.device))


def adamw(
    model: nn.Module, schedule: str, *, learning_rate: float, weight_decay: float, warmup: int, steps: int | None
) -> OptimizerLRScheduler:
    """AdamW over what is trained of a model, with a schedule by its name in transformers, stepped with every step."""
    trained = [parameter for _, parameter in trained_parameters(model)]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    scheduler = get_scheduler(schedule, optimizer, warmup, steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def checkpoint_activations(model: Any, *, on: bool = True) -> None:
    """Compute activations again in the backward pass, or keep them; transformers has renamed how that is said."""
    verb = "enable" if on else "disable"
    switch = getattr(model, f"activation_checkpointing_{verb}", None) or getattr(
        model, f"gradient_checkpointing_{verb}"
    )
    switch()


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What requires gradients, by name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
