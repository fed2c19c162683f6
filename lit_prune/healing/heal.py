"""Healing of a pruned model: adapters attached, trained beside a teacher by Lightning, the best state kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers, is_norm, own_parameters
from lit_prune.data import calibration_batches, fingerprint, window_loader
from lit_prune.errors import LitPruneError, MeasureError
from lit_prune.healing.bar import HealingBar
from lit_prune.healing.lora import attach_lora
from lit_prune.healing.optimization import trained_parameters
from lit_prune.healing.resuming import KeepState, Pause, Stretches
from lit_prune.healing.rollouts import LENGTH, ROLLOUT, Examination, Repairs, beginnings
from lit_prune.healing.stage import HealingStage
from lit_prune.healing.teacher import Teacher
from lit_prune.measure import model_fingerprints, perplexity_of
from lit_prune.plan import HealingReport, HealingSettings, LoraHealing


def heal(
    model: PreTrainedModel,
    train: Tensor,
    validation: Tensor,
    *,
    lora: LoraHealing | None = None,
    settings: HealingSettings | None = None,
    teacher: Teacher | None = None,
    prompts: Tensor | None = None,
    batch_size: int = 2,
    state: str | Path | None = None,
    pause: int | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **trainer_options: Any,
) -> HealingReport:
    """Attach adapters to a model and train them, in place; the best state by validation is kept.

    That is the one with the lowest sum of the loss in nats, and of the shares by which the model repeats itself more
    and ends more texts than its teacher where both go on with prompts; five points of each are alike.

    Args:
        model: The pruned model, without adapters. With a teacher it is the teacher's student.
        train: The token windows to train on, LongTensor [num_windows, window]; a token that is not to be learned is
            given as its complement, `~token`.
        validation: Such windows of other text, on which perplexity is measured.
        lora: The settings of the adapters, by default with a rank of 64. They stay attached: see `merge`.
        settings: The settings of the training, by default those of `HealingSettings`.
        teacher: The model whose distribution is learned, as a `DenseTeacher` or an `OtherTeacher`; None learns from the
            text itself.
        prompts: What model and teacher go on with to be compared, and behind as many as are `examined` what is
            repaired, LongTensor [num_prompts, length], with -1 in front of those that are shorter; see
            `written_requests`. By default the beginnings of validation windows, and of windows to train on.
        batch_size: The number of windows in a batch.
        state: A file that keeps the state of the training, written anew behind every validation. Where it is there, of
            the same settings and windows, the training goes on from it, on a CPU with the same results to the last bit.
        pause: The number of validations behind which the training pauses, to go on from its `state` by another call;
            None trains to the end.
        callbacks: Callbacks for Lightning's Trainer.
        progress: Whether to show the Trainer's progress bar.
        trainer_options: Further arguments of the Trainer, such as accelerator, devices or precision.

    Returns:
        What it came to. A training that was stopped by Ctrl-C is `stopped`, with the best state so far.

    Raises:
        LitPruneError: The teacher is of another model, there are adapters already, no prompts are left to repair, or
            the state is of another healing.
        MeasureError: The losses before the first step are NaN or infinite.
    """
    settings, lora = settings or HealingSettings(), lora or LoraHealing(rank=64)
    if teacher is not None and teacher.student is not model:
        raise LitPruneError("the teacher is of another model: heal teacher.student")
    if settings.repair and teacher is None:
        raise LitPruneError("repair learns what a teacher would write; give one, or leave repair at 0")
    if prompts is not None:
        settings.require_prompts(len(prompts))
    known = {} if state is None else model_fingerprints(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # for the adapters' first values
        attach_lora(model, lora)
    trained = _choose_trained(model, settings)
    if teacher is not None:
        teacher.keep(parameter for name, parameter in own_parameters(model) if name in trained)
    per_step = batch_size * int(trainer_options.get("accumulate_grad_batches", 1))  # of each process
    num_tokens = per_step * train.shape[1]
    stage = HealingStage(model, settings, steps=math.ceil(settings.tokens / num_tokens), teacher=teacher)
    stage.about = {
        "settings": asdict(settings), "lora": asdict(lora), "batch_size": batch_size, "taught": teacher is not None,
        "windows": [fingerprint(calibration_batches(rows, batch_size))["sha256"] for rows in (train, validation)],
        **({} if prompts is None else {"prompts": fingerprint([{"input_ids": prompts}])["sha256"]}),
        **known,
    }  # fmt: skip
    state = None if state is None else Path(state)
    begun = state if state is not None and state.exists() else None
    if begun is not None:
        stage.require_same(begun)
    stops: list[Callback] = [] if settings.patience is None else [EarlyStopping("val_loss", patience=settings.patience)]
    stops += [] if pause is None else [Pause(pause)]
    stops += [] if state is None else [KeepState(state)]
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    stops += [HealingBar()] if progress and not has_bar else []
    trainer = L.Trainer(
        max_steps=stage.steps,
        max_epochs=-1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the order shares windows out
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        inference_mode=False,  # the metric goes on from validation to validation
        enable_progress_bar=progress,
        callbacks=[*callbacks, *stops],
        **trainer_options,
    )
    # A pruning that the environment asks for is of the training that this one follows.
    own = [each for each in trainer.callbacks if not getattr(each, "from_environment", False)]  # type: ignore[attr-defined]
    trainer.callbacks = own  # type: ignore[attr-defined]
    order = Stretches(len(train), per_step * max(1, stage.steps // settings.validations), settings.seed)
    stage.begin_epoch = lambda step: order.begin(
        step * per_step * trainer.world_size, trainer.global_rank, trainer.world_size
    )
    if settings.examined:
        spread = max(1, len(validation) // settings.examined)  # over the texts, which come one after the other
        seen, most = _prompts(prompts, validation[::spread], LENGTH)
        stage.examine = lambda: Examination(seen[: settings.examined], teacher, length=most)
    if teacher is not None and settings.repair:
        others, longest = _prompts(None if prompts is None else prompts[settings.examined :], train, ROLLOUT)
        stage.repairs = Repairs(others, teacher, length=longest)
    training = window_loader(train, batch_size, seed=settings.seed, sampler=order)
    checking = window_loader(validation, batch_size, seed=settings.seed)
    with isolate_rng():
        torch.manual_seed(settings.seed)  # for dropout
        stopped = _train(trainer, stage, training, checking, begun)
    stage.restore_best()
    return HealingReport(
        ppl_before=perplexity_of(stage.loss_before),
        ppl_after=perplexity_of(stage.best_loss),
        step=stage.best_step,
        steps=trainer.global_step,
        tokens=trainer.global_step * num_tokens,
        seconds=stage.seconds,
        num_trained=sum(parameter.numel() for parameter in trained.values()),
        stopped=stopped,
        merit=stage.merits[-1],
        manners=stage.manners,
    )


def _train(
    trainer: L.Trainer, stage: HealingStage, training: DataLoader[Any], checking: DataLoader[Any], state: Path | None
) -> bool:
    """Train between a first and a last validation, or on from a state; returns whether Ctrl-C has stopped it."""
    if state is None:
        trainer.validate(stage, checking, verbose=False)
        stage.loss_before = stage.best_loss
        if not math.isfinite(stage.best_loss):
            raise MeasureError(
                "the loss on the validation windows is NaN or infinite before the first step: check the model's "
                "weights and dtype (float16 overflows; try bfloat16 or float32)"
            )
    try:
        trainer.fit(stage, training, checking, ckpt_path=state, weights_only=None if state is None else True)
    except SIGTERMException:
        raise
    except (KeyboardInterrupt, SystemExit):  # Lightning exits after Ctrl-C
        return True
    if stage.validated_step != trainer.global_step:
        trainer.validate(stage, checking, verbose=False)
    return False


def _prompts(given: Tensor | None, windows: Tensor, most: int) -> tuple[list[Tensor], int]:
    """The prompts that are given, or else beginnings of windows, and how many tokens are written behind each."""
    if given is not None:
        return [row[row >= 0] for row in given], most
    found = beginnings(windows)
    return found, min(most, windows.shape[1] - len(found[0]))


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
