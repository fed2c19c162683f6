"""What heals the model between removals: adapters, and the dense model as their teacher."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import wraps
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_prune.anatomy import is_adapted
from lit_prune.errors import LitPruneError
from lit_prune.healing import DenseTeacher, Distillation, LoraHealing, attach_lora, merge, taught_loss
from lit_prune.measure import labels_of


class Mending:
    """Adapters on a model from set-up to the end of a fit, and what its training steps learn from.

    Both arguments are those of `SublayerPruneCallback`.
    """

    def __init__(self, healing: bool | LoraHealing, distill: bool | Distillation) -> None:
        self.lora = LoraHealing() if healing is True else healing or None
        self.distillation = Distillation() if distill is True else distill or None
        if self.distillation and not self.lora:
            raise LitPruneError("distill wants healing: without adapters the weights that teach would be trained")
        self._adapted: PreTrainedModel | None = None
        self._teacher: DenseTeacher | None = None
        self._taught: L.LightningModule | None = None
        self._loading = ExitStack()

    def require_possible(self, module: L.LightningModule) -> None:
        """Refuse a module that optimizes by hand, whose loss cannot be replaced by a teacher's."""
        if self.distillation and not module.automatic_optimization:
            raise LitPruneError(
                f"{type(module).__name__} optimizes by hand, where no other loss can be given to it; leave distill out"
            )

    def finds_others(self, model: nn.Module) -> bool:
        """Whether the model has adapters that somebody else attached."""
        return is_adapted(model) and self._adapted is not model

    def require_none_of_others(self, model: PreTrainedModel) -> None:
        """Refuse adapters that somebody else attached, where the model is to be saved."""
        if self.finds_others(model):
            raise LitPruneError("the model has adapters of yours, which save_to cannot save; merge them first")

    def attach(self, module: L.LightningModule, model: PreTrainedModel) -> None:
        """Adapt the model, and let the module's training steps learn from the model as it is now."""
        # After a fit that failed, adapters and teacher of that fit are still there and go on.
        if self.lora and not (self._adapted is model and is_adapted(model)):
            if self.distillation:
                self._teacher = DenseTeacher(model)
            attach_lora(model, self.lora)
            self._adapted = model
        self._loading.enter_context(self.noting())
        if self._teacher is not None and self.distillation:
            self._taught = module
            # An attribute of the object hides the method of its class.
            object.__setattr__(module, "training_step", taught_step(module, self._teacher, self.distillation))

    def noting(self) -> AbstractContextManager[None]:
        """Let the teacher take note, in a `with` block, of the weights that change while it lasts."""
        return nullcontext() if self._teacher is None else self._teacher.noting()

    def loaded(self, device: torch.device) -> None:
        """Go on when a checkpoint may have been loaded: bring what belongs to the teacher alone to a device."""
        self._loading.close()
        if self._teacher is not None:
            self._teacher.to(device)

    def detach(self) -> None:
        """Give the module its own training step back."""
        self._loading.close()
        if self._taught is not None:
            self._taught.__dict__.pop("training_step", None)
            self._taught = None

    def merge(self) -> None:
        """Fold the adapters into the weights, and let go of what the teacher kept."""
        if self._adapted is not None:
            merge(self._adapted)
            self._adapted = self._teacher = None


class _Lesson:
    """The student's passes in one training step, each run by the teacher first."""

    def __init__(self, teacher: DenseTeacher, settings: Distillation) -> None:
        self._teacher, self._settings = teacher, settings
        self._signature = inspect.signature(teacher.student.forward)
        self._is_teaching = False
        self._given: list[dict[str, Any]] = []
        self._taught: Any = None
        self._output: Any = None

    def loss(self, batch: Any, text: Tensor) -> tuple[Tensor, int]:
        """What is learned from the teacher, mixed with the loss on the text, and the number of sequences."""
        if len(self._given) != 1:
            raise LitPruneError(f"distill wants one pass of the model in a training step; found {len(self._given)}")
        labels = labels_of({**self._given[0], **(batch if isinstance(batch, Mapping) else {})})
        student = self._teacher.student
        return taught_loss(self._settings, self._taught, self._output, labels, text=text, student=student), len(labels)

    def teach(self, _: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Run the teacher, a forward pre-hook of the student."""
        if self._is_teaching:
            return None
        given = dict(self._signature.bind_partial(*args, **kwargs).arguments)
        if given.get("input_ids") is None:
            raise LitPruneError("distill wants a model that is given input_ids in the training step")
        wanted = self._settings.hidden > 0
        # Before the student runs: what the teacher changes for a moment must be back when gradients are computed.
        self._is_teaching = True
        self._taught = self._teacher.outputs(given, hidden_states=wanted)
        self._is_teaching = False
        self._given.append(given)
        return (args, {**kwargs, "output_hidden_states": True}) if wanted else None

    def keep(self, _: Any, args: Any, output: Any) -> None:
        """Keep what the student puts out, a forward hook of it."""
        if not self._is_teaching:
            self._output = output


def taught_step(module: L.LightningModule, teacher: DenseTeacher, settings: Distillation) -> Callable[..., Any]:
    """A module's training step, whose loss is mixed with the divergence from a teacher.

    Whatever the step computes, the teacher sees what the model was given in it, once.
    """
    original, student = module.training_step, teacher.student

    @wraps(original)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        lesson = _Lesson(teacher, settings)
        before = student.register_forward_pre_hook(lesson.teach, with_kwargs=True)
        with before, student.register_forward_hook(lesson.keep):
            result = original(*args, **kwargs)
        if result is None:
            return None
        batch = args[0] if args else next(iter(kwargs.values()))
        loss, batch_size = lesson.loss(batch, result["loss"] if isinstance(result, Mapping) else result)
        module.log("distillation_loss", loss.detach(), batch_size=batch_size)
        return {**result, "loss": loss} if isinstance(result, Mapping) else loss

    return training_step
