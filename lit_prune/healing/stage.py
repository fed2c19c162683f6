"""A pruned model in training beside its teacher, as a LightningModule that keeps its best state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import PreTrainedModel, get_scheduler

from lit_prune.healing.distillation import cut_states, taught_loss
from lit_prune.healing.settings import HealingSettings
from lit_prune.healing.teacher import DenseTeacher
from lit_prune.healing.token_mean import TokenMean
from lit_prune.measure import labels_of, logits_of, mean_loss, model_inputs, perplexity_of, predicts


class HealingStage(L.LightningModule):
    """A pruned model whose parameters that require gradients are trained, beside its teacher or on the text alone.

    Attributes:
        best_loss: The lowest mean token loss in a validation, in nats.
        best_step: The optimizer step after which that was.
        validated_step: The optimizer step after which the last validation was.
    """

    def __init__(
        self, model: PreTrainedModel, settings: HealingSettings, *, steps: int, teacher: DenseTeacher | None = None
    ) -> None:
        super().__init__()
        self.model = model.train()
        if settings.gradient_checkpointing:
            checkpoint_activations(model)
        self.settings, self.steps, self.teacher = settings, steps, teacher
        self.best_loss, self.best_step, self.validated_step = math.inf, 0, -1
        self._token_mean = TokenMean()
        self._best: dict[str, Tensor] = {}
        self._cuts = cut_states(model)
        self._metric = MeanMetric(nan_strategy=math.inf)  # by default, a batch with NaN is left out

    def on_fit_start(self) -> None:
        """Bring what belongs to the teacher to the trainer's device."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch: divergence from the teacher, mixed with that of the text."""
        own, labels = self.settings, labels_of(batch)
        wanted = own.hidden > 0 and self.teacher is not None
        # First, since it changes weights for a moment that the student's backward pass needs as they are.
        taught = None if self.teacher is None else self.teacher.outputs(batch, hidden_states=wanted)
        out = self.model(**model_inputs(self.model, batch), use_cache=False, output_hidden_states=wanted)
        if taught is None:
            loss = mean_loss(out.logits, labels)[0]
        else:
            text = mean_loss(out.logits, labels)[0] if own.cross_entropy > 0 else None
            loss = taught_loss(own, taught, out, labels, text=text, cuts=self._cuts)
        self._token_mean.saw(predicts(labels).sum(), batch_idx)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Weigh accumulated batches by their tokens."""
        self._token_mean.backward(self, loss, *args, **kwargs)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Accumulate the token loss."""
        self._metric.update(*mean_loss(logits_of(self.model, batch), labels_of(batch)))

    def on_validation_epoch_end(self) -> None:
        """Keep the trained weights where they are the best so far."""
        loss = float(self._metric.compute())
        self._metric.reset()
        self.validated_step = self.trainer.global_step
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.validated_step
            self._best = {name: parameter.detach().clone() for name, parameter in trained_parameters(self.model)}
        self.log("val_loss", loss, sync_dist=False)
        self.log("val_ppl", perplexity_of(loss), prog_bar=True, sync_dist=False)

    def restore_best(self) -> None:
        """Go back to the weights with the lowest validation loss, those before the first step included."""
        with torch.no_grad():
            for name, parameter in trained_parameters(self.model):
                parameter.copy_(self._best[name])
        self.model.eval()
        if self.settings.gradient_checkpointing:
            checkpoint_activations(self.model, on=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW without weight decay, and the schedule, stepped with it."""
        own = self.settings
        warmup = round(own.warmup * self.steps)
        return adamw(self.model, own.lr_schedule, learning_rate=own.learning_rate, warmup=warmup, steps=self.steps)


def adamw(
    model: nn.Module,
    schedule: str,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    warmup: int = 0,
    steps: int | None = None,
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
