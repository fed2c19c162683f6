"""Healing of a pruned model: adapters attached, trained beside a teacher by Lightning, the best state kept."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers, is_norm
from lit_prune.data import window_loader
from lit_prune.errors import LitPruneError, MeasureError
from lit_prune.healing.distillation import taught_loss
from lit_prune.healing.lora import LoraHealing, attach_lora
from lit_prune.healing.optimization import TokenMean, adamw, checkpoint_activations, trained_parameters
from lit_prune.healing.settings import HealingReport, HealingSettings
from lit_prune.healing.teacher import DenseTeacher
from lit_prune.measure import labels_of, logits_of, mean_loss, model_inputs, perplexity_of, predicts


def heal(
    model: PreTrainedModel,
    train: Tensor,
    validation: Tensor,
    *,
    lora: LoraHealing | None = None,
    settings: HealingSettings | None = None,
    teacher: DenseTeacher | None = None,
    batch_size: int = 2,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **trainer_options: Any,
) -> HealingReport:
    """Attach adapters to a model and train them, in place; the state with the best validation perplexity is kept.

    Args:
        model: The pruned model, without adapters. With a teacher it is the teacher's student.
        train: The token windows to train on, LongTensor [num_windows, window].
        validation: Such windows of other text, on which perplexity is measured.
        lora: The settings of the adapters, by default with a rank of 64. They stay attached: see `merge`.
        settings: The settings of the training, by default those of `HealingSettings`.
        teacher: The dense model whose distribution is learned; None learns from the text itself.
        batch_size: The number of windows in a batch.
        callbacks: Callbacks for Lightning's Trainer.
        progress: Whether to show the Trainer's progress bar.
        trainer_options: Further arguments of the Trainer, such as accelerator, devices or precision.

    Raises:
        LitPruneError: The teacher is of another model, or there are adapters already.
        MeasureError: The losses before the first step are NaN or infinite.
    """
    settings = settings or HealingSettings()
    if teacher is not None and teacher.student is not model:
        raise LitPruneError("the teacher is of another model: heal teacher.student")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # for the adapters' first values
        attach_lora(model, lora or LoraHealing(rank=64))
    trained = _choose_trained(model, settings)
    if teacher is not None:
        teacher.keep(parameter for name, parameter in trained.items() if "lora_" not in name)
    num_tokens = batch_size * train.shape[1]
    stage = HealingStage(model, settings, steps=math.ceil(settings.tokens / num_tokens), teacher=teacher)
    stops = [] if settings.patience is None else [EarlyStopping("val_loss", patience=settings.patience)]
    trainer = L.Trainer(
        max_steps=stage.steps,
        max_epochs=-1,
        val_check_interval=max(1, stage.steps // settings.validations),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        inference_mode=False,  # the metric goes on from validation to validation
        enable_progress_bar=progress,
        callbacks=[*callbacks, *stops],
        **trainer_options,
    )
    begin = time.monotonic()
    training = window_loader(train, batch_size, seed=settings.seed, shuffle=True)
    checking = window_loader(validation, batch_size, seed=settings.seed)
    before = _train(trainer, stage, training, checking)
    seconds = time.monotonic() - begin
    stage.restore_best()
    return HealingReport(
        ppl_before=perplexity_of(before),
        ppl_after=perplexity_of(stage.best_loss),
        step=stage.best_step,
        steps=trainer.global_step,
        tokens=trainer.global_step * num_tokens,
        seconds=seconds,
        num_trained=sum(parameter.numel() for parameter in trained.values()),
    )


def _train(trainer: L.Trainer, stage: HealingStage, training: DataLoader[Any], checking: DataLoader[Any]) -> float:
    """Train between a first and a last validation; returns the loss of the first."""
    trainer.validate(stage, checking, verbose=False)
    before = stage.best_loss
    if not math.isfinite(before):
        raise MeasureError(
            "the loss on the validation windows is NaN or infinite before the first step: check the model's weights "
            "and dtype (float16 overflows; try bfloat16 or float32)"
        )
    trainer.fit(stage, training, checking)
    if stage.validated_step != trainer.global_step:
        trainer.validate(stage, checking, verbose=False)
    return before


def _choose_trained(model: Any, settings: HealingSettings) -> dict[str, nn.Parameter]:
    blocks = list(find_sublayers(model).block_list(model))
    chosen: list[nn.Module] = blocks[-settings.last_blocks :] if settings.last_blocks else []
    if "norms" in settings.also:
        chosen += [module for module in model.modules() if is_norm(module)]
    if "head" in settings.also:
        chosen.append(model.get_output_embeddings())
    for module in chosen:
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    return trained_parameters(model)


class HealingStage(TokenMean):
    """A pruned model whose parameters that require gradients are trained, beside its teacher or on the text alone.

    The losses that validations find are mean token losses in nats; steps are those of the optimizer.
    """

    def __init__(
        self, model: PreTrainedModel, settings: HealingSettings, *, steps: int, teacher: DenseTeacher | None = None
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.settings, self.steps, self.teacher = settings, steps, teacher
        if settings.gradient_checkpointing:
            checkpoint_activations(model)
        self.best_loss, self.best_step, self.validated_step = math.inf, 0, -1
        self._best: dict[str, Tensor] = {}
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
            loss = taught_loss(own, taught, out, labels, text=text, student=self.model)
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
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.validated_step
            self._best = {name: value.detach().clone() for name, value in trained_parameters(self.model).items()}
        self.log("val_loss", loss, sync_dist=False)
        self.log("val_ppl", perplexity_of(loss), prog_bar=True, sync_dist=False)

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
