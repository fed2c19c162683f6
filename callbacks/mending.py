"""What heals the model between removals: adapters, and the dense model as their teacher."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_prune.anatomy import is_adapted
from lit_prune.errors import LitPruneError
from lit_prune.healing import DenseTeacher, Distillation, LoraHealing, attach_lora, cut_states, merge_lora, taught_loss
from lit_prune.measure import labels_of


class Mending:
    """Adapters on a model from set-up to the end of a fit, and what its training steps learn from.

    Args:
        healing: LoRA adapters: True, or their settings. False trains the model's own weights.
        distill: The model as it was at set-up teaches: True, or what is learned from it.

    Attributes:
        lora: Settings of the adapters, None without.

    Raises:
        LitPruneError: A teacher is wanted and no adapters: the weights that teach would be trained.
    """

    def __init__(self, healing: bool | LoraHealing, distill: bool | Distillation) -> None:
        self.lora = LoraHealing() if healing is True else healing or None
        self.distillation = Distillation() if distill is True else distill or None
        if self.distillation and not self.lora:
            raise LitPruneError("distill wants healing: without adapters the weights that teach would be trained")
        self._adapted: PreTrainedModel | None = None
        self._teacher: DenseTeacher | None = None
        self._taught: L.LightningModule | None = None

    def require_possible(self, module: L.LightningModule) -> None:
        """Refuse a module whose loss cannot be replaced.

        Raises:
            LitPruneError: It optimizes by hand.
        """
        if self.distillation and not module.automatic_optimization:
            raise LitPruneError(
                f"{type(module).__name__} optimizes by hand, where no other loss can be given to it; leave distill out"
            )

    def is_on(self, model: PreTrainedModel) -> bool:
        """Whether the adapters of a model are this one's."""
        return self._adapted is model and is_adapted(model)

    def attach(self, module: L.LightningModule, model: PreTrainedModel) -> None:
        """Adapt the model, and let the module's training steps learn from the model as it is now."""
        # After a fit that failed, adapters and teacher of that fit are still there and go on.
        if self.lora and not self.is_on(model):
            if self.distillation:
                self._teacher = DenseTeacher(model)
            attach_lora(model, self.lora)
            self._adapted = model
        if self._teacher is not None and self.distillation:
            self._taught = module
            # An attribute of the object hides the method of its class.
            object.__setattr__(module, "training_step", taught_step(module, self._teacher, self.distillation))

    def to(self, device: torch.device) -> None:
        """Bring what belongs to the teacher alone to a device."""
        if self._teacher is not None:
            self._teacher.to(device)

    def detach(self) -> None:
        """Give the module its own training step back."""
        if self._taught is not None:
            self._taught.__dict__.pop("training_step", None)
            self._taught = None

    def merge(self) -> None:
        """Fold the adapters into the weights, and let go of what the teacher kept."""
        if self._adapted is not None:
            merge_lora(self._adapted)
            self._adapted = self._teacher = None

    def require_none_of_others(self, model: PreTrainedModel) -> None:
        """Refuse adapters that somebody else attached, where the model is to be saved.

        Raises:
            LitPruneError: There are some.
        """
        if is_adapted(model) and not self.is_on(model):
            raise LitPruneError("the model has adapters of yours, which save_to cannot save; merge them first")


def taught_step(module: L.LightningModule, teacher: DenseTeacher, settings: Distillation) -> Callable[..., Any]:
    """A module's training step, whose loss is mixed with the divergence from a teacher.

    Whatever the step computes, the teacher sees what the model was given in it, once.
    """
    original, model = module.training_step, teacher.student
    signature = inspect.signature(model.forward)

    @wraps(original)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        seen: list[tuple[dict[str, Any], Any, Any]] = []
        is_teaching = False

        def before(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            nonlocal is_teaching
            if is_teaching:
                return None
            given = dict(signature.bind_partial(*args, **kwargs).arguments)
            if given.get("input_ids") is None:
                raise LitPruneError("distill wants a model that is given input_ids in the training step")
            # Before the student runs: what the teacher changes for a moment must be back when gradients are computed.
            is_teaching = True
            taught = teacher.outputs(given, hidden_states=settings.hidden > 0)
            is_teaching = False
            seen.append((given, taught, None))
            return (args, {**kwargs, "output_hidden_states": True}) if settings.hidden > 0 else None

        def behind(_: Any, args: Any, output: Any) -> None:
            if not is_teaching:
                seen[-1] = (*seen[-1][:2], output)

        handles = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(behind),
        ]
        try:
            result = original(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        if result is None:
            return None
        if len(seen) != 1:
            raise LitPruneError(f"distill wants one pass of the model in a training step; found {len(seen)}")
        given, taught, output = seen[0]
        batch = args[0] if args else next(iter(kwargs.values()))
        labels = labels_of({**given, **(batch if isinstance(batch, Mapping) else {})})
        text: Tensor = result["loss"] if isinstance(result, Mapping) else result
        loss = taught_loss(settings, taught, output, labels, text=text, cuts=cut_states(model))
        module.log("distillation_loss", loss.detach(), batch_size=len(labels))
        return {**result, "loss": loss} if isinstance(result, Mapping) else loss

    return training_step
