"""Healing of a pruned model: adapters attached, trained by Lightning's Trainer, the best state kept."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers, is_norm
from lit_prune.data import window_loader
from lit_prune.errors import LitPruneError, MeasureError
from lit_prune.healing.lora import LoraHealing, attach_lora
from lit_prune.healing.settings import HealingReport, HealingSettings
from lit_prune.healing.stage import HealingStage, trained_parameters
from lit_prune.healing.teacher import DenseTeacher
from lit_prune.measure import perplexity_of


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
        validation: The windows of other text that perplexity is measured on, LongTensor [num_windows, window].
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
    anatomy = find_sublayers(model)
    chosen: list[nn.Module] = []
    if settings.last_blocks:
        chosen += list(anatomy.block_list(model))[-settings.last_blocks :]
    if "norms" in settings.also:
        chosen += [module for module in model.modules() if is_norm(module)]
    if "head" in settings.also:
        chosen.append(model.get_output_embeddings())
    for module in chosen:
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    return dict(trained_parameters(model))
