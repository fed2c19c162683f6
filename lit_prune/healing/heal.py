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
from torch.utils.data import DataLoader, TensorDataset
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers, is_norm
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
        model: Pruned, without adapters; the teacher's student where there is one.
        train: Token windows, LongTensor [num_windows, window].
        validation: The same, of other text.
        lora: Settings of the adapters, which stay attached: see `merge_lora`.
        settings: Of the training.
        teacher: Its distribution is what is learned; without one, the text itself.
        batch_size: Windows in a batch.
        callbacks: For Lightning's Trainer.
        progress: Whether to show its progress bar.
        trainer_options: Further arguments of the Trainer, such as accelerator, devices or precision.

    Raises:
        LitPruneError: The teacher is of another model, or there are adapters already.
        MeasureError: NaN or infinite losses before the first step.
    """
    settings = settings or HealingSettings()
    if teacher is not None and teacher.student is not model:
        raise LitPruneError("the teacher is of another model: heal teacher.student")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # for the adapters' first values
        attach_lora(model, lora or LoraHealing(rank=64))
    trained = _choose_trained(model, settings)
    if teacher is not None:
        teacher.keep(each for name, each in trained.items() if "lora_" not in name)
    steps = math.ceil(settings.tokens / (batch_size * train.shape[1]))
    stage = HealingStage(model, settings, steps=steps, teacher=teacher)
    training = _loader(train, batch_size, settings.seed, shuffle=True)
    checking = _loader(validation, batch_size, settings.seed, shuffle=False)
    stops = [] if settings.patience is None else [EarlyStopping("val_loss", patience=settings.patience)]
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=max(1, steps // settings.validations),
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
    seconds = time.monotonic() - begin
    stage.restore_best()
    return HealingReport(
        ppl_before=perplexity_of(before),
        ppl_after=perplexity_of(stage.best_loss),
        step=stage.best_step,
        steps=trainer.global_step,
        tokens=trainer.global_step * batch_size * train.shape[1],
        seconds=seconds,
        num_trained=sum(each.numel() for each in trained.values()),
    )


def _choose_trained(model: Any, settings: HealingSettings) -> dict[str, nn.Parameter]:
    chosen: list[Any] = []
    anatomy = find_sublayers(model)
    blocks = list(model.get_submodule(anatomy.blocks_path))
    if settings.last_blocks:
        chosen += blocks[-settings.last_blocks :]
    if "norms" in settings.also:
        chosen += [each for each in model.modules() if is_norm(each)]
    if "head" in settings.also:
        chosen.append(model.get_output_embeddings())
    for module in chosen:
        for each in module.parameters():
            each.requires_grad_(each.is_floating_point())
    return dict(trained_parameters(model))


def _loader(windows: Tensor, batch_size: int, seed: int, *, shuffle: bool) -> DataLoader[Any]:
    return DataLoader(
        TensorDataset(windows),
        batch_size=batch_size,
        shuffle=shuffle,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(seed),
    )


def _collate(rows: Sequence[tuple[Tensor]]) -> dict[str, Tensor]:
    windows = torch.stack([row for (row,) in rows])
    return {"input_ids": windows, "labels": windows.clone()}
