"""Healing of a pruned model: adapters attached, trained beside a teacher by Lightning, the best state kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers, is_norm
from lit_prune.data import calibration_batches, fingerprint, window_loader
from lit_prune.errors import LitPruneError, MeasureError
from lit_prune.healing.distillation import taught_loss
from lit_prune.healing.lora import LoraHealing, attach_lora
from lit_prune.healing.optimization import TokenMean, adamw, checkpoint_activations, trained_parameters
from lit_prune.healing.resuming import KeepState, Stretches
from lit_prune.healing.settings import HealingReport, HealingSettings
from lit_prune.healing.teacher import Teacher
from lit_prune.loading.randomness import random_state, restore_random_state
from lit_prune.measure import labels_of, logits_of, mean_loss, model_fingerprints, model_inputs, perplexity_of, predicts

SO_FAR = ("loss_before", "best_loss", "best_step", "validated_step")
"""What a validation has found, which a training that goes on needs."""


def heal(
    model: PreTrainedModel,
    train: Tensor,
    validation: Tensor,
    *,
    lora: LoraHealing | None = None,
    settings: HealingSettings | None = None,
    teacher: Teacher | None = None,
    batch_size: int = 2,
    state: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **trainer_options: Any,
) -> HealingReport:
    """Attach adapters to a model and train them, in place; the state with the best validation perplexity is kept.

    Args:
        model: The pruned model, without adapters. With a teacher it is the teacher's student.
        train: The token windows to train on, LongTensor [num_windows, window]; a token that is not to be learned is
            given as its complement, `~token`.
        validation: Such windows of other text, on which perplexity is measured.
        lora: The settings of the adapters, by default with a rank of 64. They stay attached: see `merge`.
        settings: The settings of the training, by default those of `HealingSettings`.
        teacher: The model whose distribution is learned, as a `DenseTeacher` or an `OtherTeacher`; None learns from the
            text itself.
        batch_size: The number of windows in a batch.
        state: A file that keeps the state of the training, written anew behind every validation. Where it is there, of
            the same settings and windows, the training goes on from it, on a CPU with the same results to the last bit.
        callbacks: Callbacks for Lightning's Trainer.
        progress: Whether to show the Trainer's progress bar.
        trainer_options: Further arguments of the Trainer, such as accelerator, devices or precision.

    Returns:
        What it came to. A training that was stopped by Ctrl-C is `stopped`, with the best state so far.

    Raises:
        LitPruneError: The teacher is of another model, there are adapters already, or the state is of another healing.
        MeasureError: The losses before the first step are NaN or infinite.
    """
    settings, lora = settings or HealingSettings(), lora or LoraHealing(rank=64)
    if teacher is not None and teacher.student is not model:
        raise LitPruneError("the teacher is of another model: heal teacher.student")
    known = {} if state is None else model_fingerprints(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # for the adapters' first values
        attach_lora(model, lora)
    trained = _choose_trained(model, settings)
    if teacher is not None:
        teacher.keep(parameter for name, parameter in trained.items() if "lora_" not in name)
    per_step = batch_size * int(trainer_options.get("accumulate_grad_batches", 1))  # of each process
    num_tokens = per_step * train.shape[1]
    stage = HealingStage(model, settings, steps=math.ceil(settings.tokens / num_tokens), teacher=teacher)
    stage.about = {
        "settings": asdict(settings), "lora": asdict(lora), "batch_size": batch_size, "taught": teacher is not None,
        "windows": [fingerprint(calibration_batches(rows, batch_size))["sha256"] for rows in (train, validation)],
        **known,
    }  # fmt: skip
    state = None if state is None else Path(state)
    begun = state if state is not None and state.exists() else None
    if begun is not None:
        stage.require_same(begun)
    stops = [] if settings.patience is None else [EarlyStopping("val_loss", patience=settings.patience)]
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
        callbacks=[*callbacks, *stops, *([] if state is None else [KeepState(state)])],
        **trainer_options,
    )
    order = Stretches(len(train), per_step * max(1, stage.steps // settings.validations), settings.seed)
    stage.begin_epoch = lambda step: order.begin(
        step * per_step * trainer.world_size, trainer.global_rank, trainer.world_size
    )
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
        self, model: PreTrainedModel, settings: HealingSettings, *, steps: int, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.settings, self.steps, self.teacher = settings, steps, teacher
        if settings.gradient_checkpointing:
            checkpoint_activations(model)
        self.best_loss, self.best_step, self.validated_step = math.inf, 0, -1
        self.loss_before = math.nan
        self.about: dict[str, Any] = {}
        self._best: dict[str, Tensor] = {}
        self._seconds_before, self._begin = 0.0, time.monotonic()
        self._random_state: dict[str, Any] | None = None
        self.begin_epoch: Callable[[int], None] = lambda step: None
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

    def on_train_start(self) -> None:
        """Draw at random what would have been drawn, where the training goes on."""
        if self._random_state is not None:
            restore_random_state(self._random_state)

    def on_train_epoch_start(self) -> None:
        """Go on in the order of the windows."""
        self.begin_epoch(self.trainer.global_step)

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
