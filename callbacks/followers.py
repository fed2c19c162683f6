"""What follows the trained model in a run: the structure of checkpoints, averages, names of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging, WeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel

from lit_prune.healing import merge
from lit_prune.loading.trees import is_a
from lit_prune.plan import SublayerId
from lit_prune.surgery import cut_groups, remove
from lit_prune.training import follow_checkpoints, restore_structure, structure_of

from .trainers import callbacks_of, language_models, model_in

AVERAGING = (WeightAveraging, StochasticWeightAveraging)


class Following:
    """Keeps a model, and averages of it, at the structure of the checkpoint that is loaded, from set-up to teardown."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self._lent: nn.Module | None = None

    def begin(self, trainer: L.Trainer, module: L.LightningModule, model: nn.Module, name: str | None) -> None:
        """Restore the structure before weights whenever the module loads a checkpoint."""
        structure_of(model)  # refuses now what would be refused when the first checkpoint is written
        restore = partial(self._restore, trainer, model, name)
        self._held.callback(follow_checkpoints(module, trainer.strategy, restore))

    def end(self, *, keep: bool) -> None:
        """Let go of the module; adapters that a checkpoint brought are merged unless they are kept to be trained on."""
        self._held.close()
        if self._lent is not None and not keep:
            merge(self._lent)
        self._lent = None

    def _restore(self, trainer: L.Trainer, model: nn.Module, name: str | None, checkpoint: Mapping[str, Any]) -> None:
        followers = list(averages(trainer, name))  # as long as they are built alike
        if restore_structure(model, checkpoint, trainer.optimizers):
            self._lent = model
        for average in followers:
            restore_structure(average, checkpoint)


def follow_removal(trainer: L.Trainer, sublayers: Iterable[SublayerId], name: str | None) -> None:
    """Take sublayers that the trained model has lost out of its averages, and forget the names of their parameters."""
    gone = list(sublayers)
    for average in list(averages(trainer, name)):
        remove(average, gone, trainer.optimizers)
    left = {name for name, _ in trainer.lightning_module.named_parameters()}
    for callback in callbacks_of(trainer):
        if is_a(callback, BaseFinetuning):  # a resumed run would look for them
            for groups in callback._internal_optimizer_metadata.values():
                cut_groups(groups, left.__contains__)


def averages(trainer: L.Trainer, name: str | None) -> Iterator[PreTrainedModel]:
    """The language models in all averages, by callbacks and in the module, where it has the attribute path `name`."""
    own = model_in(trainer.lightning_module, name)
    yield from averages_in(trainer.lightning_module, own).values()
    for callback in averaging_callbacks(trainer):
        if (average := callback._average_model) is not None:  # none in a run that does not fit
            module = average.module if is_a(callback, WeightAveraging) else average
            yield model_in(module, name)
            yield from averages_in(module, own).values()
    for callback in callbacks_of(trainer):
        if not is_a(callback, *AVERAGING):
            for value in vars(callback).values():
                yield from averages_in(value, own).values() if isinstance(value, AveragedModel) else ()


def averages_in(module: nn.Module, model: nn.Module) -> dict[str, PreTrainedModel]:
    """Averages that a module holds of a model, by path; the model may have lost something that they have not."""
    return {
        ".".join(filter(None, (path, "module", inner))): average
        for path, part in module.named_modules()
        if isinstance(part, AveragedModel)
        for inner, average in language_models(part.module)
        if _shapes(model).items() <= _shapes(average).items()
    }


def copies_in(module: nn.Module, model: nn.Module) -> list[str]:
    """Paths of the other models in a module that are built like one of them, averages left out."""
    return [path for path, other in language_models(module) if other is not model and _shapes(other) == _shapes(model)]


def averaging_callbacks(trainer: L.Trainer) -> list[Any]:
    """The trainer's callbacks that average the module's weights."""
    return [callback for callback in callbacks_of(trainer) if is_a(callback, *AVERAGING)]


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
