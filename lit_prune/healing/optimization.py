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
from torch.optim import Optimizer
from transformers import get_scheduler

from lit_prune.loading.processes import processes_of_trainer

UNIT = 1024
"""Tokens that a weight of 1 stands for until all are counted; a power of two, so that dividing by it rounds nothing."""


class TokenMean(L.LightningModule):
    """A module whose batches are weighed by their tokens in an optimizer step, as transformers' Trainer does.

    Batches of one process that are not accumulated are left alone, and so is a module that optimizes by hand.
    """

    _seen_tokens: tuple[Tensor, int] | None = None
    _step_tokens: Tensor | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def saw(self, num_tokens: Tensor, batch_idx: int) -> None:
        """Take note, in `training_step`, of the tokens behind its mean loss."""
        self._seen_tokens = num_tokens.detach().float(), batch_idx

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Weigh the loss of a batch, which Lightning has divided by the number of batches and perhaps scaled."""
        trainer, seen, self._seen_tokens = self.trainer, self._seen_tokens, None
        number = trainer.accumulate_grad_batches
        if seen is None or not self.automatic_optimization or (number == 1 and trainer.world_size == 1):
            super().backward(loss, *args, **kwargs)
            return
        tokens, batch_idx = seen
        before = None if batch_idx % number == 0 else self._step_tokens
        self._step_tokens = tokens if before is None else before + tokens
        weight = tokens / UNIT
        if (batch_idx + 1) % number == 0 or trainer.is_last_batch:
            total = processes_of_trainer(trainer).mean(self._step_tokens)
            total = total.clamp(min=1 / trainer.world_size)  # where nothing is predicted
            # What came before is in the gradients already, and is scaled before the last backward pass: this is the
            # one in which DDP averages them, and behind which hooks look at them.
            if before is not None:
                _divide(trainer, total)
            weight, self._step_tokens = tokens / total, None
        super().backward(loss * (number * weight), *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Weigh as well where a step's last batch was left out: its `training_step` returned None."""
        if self._step_tokens is not None:
            _divide(self.trainer, self._step_tokens.clamp(min=1))
            self._step_tokens = None


def _divide(trainer: L.Trainer, total: Tensor) -> None:
    # By optimizers: behind a pass, a module that FSDP2 shards holds other parameters for a while.
    for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(UNIT / total.to(parameter.grad.device))


def adamw(
    model: nn.Module, schedule: str, *, learning_rate: float, weight_decay: float = 0.0, warmup: int, steps: int | None
) -> OptimizerLRScheduler:
    """AdamW over what is trained of a model, with a schedule by its name in transformers, stepped with every step."""
    optimizer = torch.optim.AdamW(trained_parameters(model).values(), lr=learning_rate, weight_decay=weight_decay)
    scheduler = get_scheduler(schedule, optimizer, warmup, steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def checkpoint_activations(model: Any, *, on: bool = True) -> None:
    """Compute activations again in the backward pass, or keep them; transformers has renamed how that is said."""
    verb = "enable" if on else "disable"
    name = f"activation_checkpointing_{verb}"
    getattr(model, name if hasattr(model, name) else f"gradient_checkpointing_{verb}")()


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What requires gradients, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
