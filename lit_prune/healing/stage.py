"""A pruned model in training: its steps and validations, as a module for Lightning's Trainer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from lit_prune.errors import LitPruneError
from lit_prune.healing.distillation import taught_loss
from lit_prune.healing.optimization import TokenMean, adamw, checkpoint_activations, trained_parameters
from lit_prune.healing.rollouts import Examination, Manners, Repairs
from lit_prune.healing.teacher import Teacher
from lit_prune.loading.randomness import random_state, restore_random_state
from lit_prune.measure import labels_of, logits_of, mean_loss, model_inputs, perplexity_of, predicts
from lit_prune.plan import HealingSettings

SO_FAR = ("loss_before", "best_loss", "merits", "best_step", "validated_step", "manners")
"""What a validation has found, which a training that goes on needs."""


def merits_in(state: Path) -> list[float]:
    """What the best state so far was worth behind every validation of a training, from the file of its state."""
    if not state.exists():
        return []
    found: list[float] = torch.load(state, map_location="cpu", weights_only=True)["healing"]["merits"]
    return found


class HealingStage(TokenMean):
    """A pruned model whose parameters that require gradients are trained, beside its teacher or on the text alone.

    The losses that validations find are mean token losses in nats; steps are those of the optimizer.
    """

    def __init__(
        self, model: PreTrainedModel, settings: HealingSettings, *, steps: int, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.settings, self.steps, self.teacher = settings, steps, teacher
        if settings.gradient_checkpointing:
            checkpoint_activations(model)
        self.best_loss, self.best_step, self.validated_step = math.inf, 0, -1
        self.merits: list[float] = []
        self.loss_before = math.nan
        self.manners: dict[str, dict[str, float | None]] = {}
        self.about: dict[str, Any] = {}
        self._best: dict[str, Tensor] = {}
        self._seconds_before, self._begin = 0.0, time.monotonic()
        self._random_state: dict[str, Any] | None = None
        self.begin_epoch: Callable[[int], None] = lambda step: None
        self.repairs: Repairs | None = None
        self.examine: Callable[[], Examination] | None = None
        self._examination: Examination | None = None
        self.strict_loading = False  # a state holds what is trained
        self._metric = MeanMetric(nan_strategy=math.inf)  # by default, a batch with NaN is left out

    @property
    def seconds(self) -> float:
        """Seconds of training and validation so far, those before it was stopped included."""
        return self._seconds_before + time.monotonic() - self._begin

    def on_fit_start(self) -> None:
        """Bring what belongs to the teacher to the trainer's device."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    on_validation_start = on_fit_start

    def on_train_start(self) -> None:
        """Draw at random what would have been drawn, where the training goes on."""
        if self._random_state is not None:
            restore_random_state(self._random_state)

    def on_train_epoch_start(self) -> None:
        """Go on in the order of the windows."""
        self.begin_epoch(self.trainer.global_step)
        if self.repairs is not None:
            number = max(1, self.steps // self.settings.validations)
            seed = self.trainer.global_step * self.trainer.world_size + self.trainer.global_rank
            self.repairs.renew(self.model, number, seed=seed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, the best of it so far, and what they are of; not the model, which is there again."""
        trained = {f"model.{name}" for name in trained_parameters(self.model)}
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in weights if name in trained}
        checkpoint["healing"] = {"about": self.about, "best": self._best, "random_state": random_state()}
        checkpoint["healing"] |= {name: getattr(self, name) for name in (*SO_FAR, "seconds")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        found = checkpoint["healing"]
        self._best, self._random_state, self._seconds_before = found["best"], found["random_state"], found["seconds"]
        for name in SO_FAR:
            setattr(self, name, found[name])

    def require_same(self, state: Path) -> None:
        """Refuse the state of a healing with other settings, or on other windows, with a LitPruneError."""
        there = torch.load(state, map_location="cpu", weights_only=True)["healing"]["about"]
        if other := [name for name, value in self.about.items() if there.get(name) != value]:
            raise LitPruneError(f"{state} is of a healing with other {', '.join(other)}: remove it, or name another")

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
            loss = taught_loss(own, taught, out, labels, text=None, student=self.model)
        repaired = None if self.repairs is None else self.repairs.loss(self.model, batch_idx)
        if repaired is not None:
            loss = loss + own.repair * repaired
            self.log("repair_loss", repaired)
        self.saw(predicts(labels).sum(), batch_idx)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Accumulate the token loss."""
        self._metric.update(*mean_loss(logits_of(self.model, batch), labels_of(batch)))

    def on_validation_epoch_end(self) -> None:
        """Keep the trained weights where they are the best so far."""
        loss = float(self._metric.compute())
        self._metric.reset()
        self.validated_step = self.trainer.global_step
        now, excess = self._examined()
        merit = loss + excess
        best = min(self.merits, default=math.inf)
        self.merits.append(min(merit, best))
        if merit < best:
            self.best_loss, self.best_step = loss, self.validated_step
            self.manners |= {} if now is None else {"after": asdict(now)}
            self._best = {name: value.detach().clone() for name, value in trained_parameters(self.model).items()}
        self.log("val_loss", loss, sync_dist=False)
        self.log("val_ppl", perplexity_of(loss), prog_bar=True, sync_dist=False)

    def _examined(self) -> tuple[Manners | None, float]:
        """How the model goes on with text now, where that is looked at, and how much worse than its teacher."""
        if self.examine is None:
            return None, 0.0
        if self._examination is None:
            self._examination = self.examine()
        teachers, now = self._examination.teachers, self._examination.of(self.model)
        self.manners.setdefault("before", asdict(now))
        self.log("val_repetition", now.repetition, sync_dist=False)
        if teachers is None:
            return now, 0.0
        self.manners["teacher"] = asdict(teachers)
        return now, now.worse(teachers)

    def restore_best(self) -> None:
        """Go back to the weights with the lowest validation loss, those before the first step included."""
        with torch.no_grad():
            for name, parameter in trained_parameters(self.model).items():
                parameter.copy_(self._best[name])
        self.model.eval()
        if self.settings.gradient_checkpointing:
            checkpoint_activations(self.model, on=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW without weight decay, and the schedule, stepped with it."""
        own, steps = self.settings, self.steps
        warmup = round(own.warmup * steps)
        return adamw(self.model, own.lr_schedule, learning_rate=own.learning_rate, warmup=warmup, steps=steps)
