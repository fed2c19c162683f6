"""Averages of the model that is trained, in the module and in callbacks of anybody: they lose what it loses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel

from lit_prune.errors import LitPruneError
from lit_prune.plan.prune_plan import SublayerId
from lit_prune.pruning import Pruner
from lit_prune.surgery import remove

from . import sharding
from .loop import language_models, model_in
from .mending import Mending


def require_possible(
    trainer: L.Trainer, module: nn.Module, pruning: Callback, pruner: Pruner, mending: Mending
) -> None:
    """Refuse what an averaged model could not follow, and say of other copies that they stay as they are.

    Args:
        trainer: With its callbacks.
        module: That is trained.
        pruning: The callback that removes.
        pruner: Its own, before its first step.
        mending: Of the model that is trained.

    Raises:
        LitPruneError: With what to change.
    """
    callbacks, inside = trainer.callbacks, averages_in(module, pruner.model)  # type: ignore[attr-defined]
    for each in _averaging(trainer):
        if callbacks.index(each) < callbacks.index(pruning):
            raise LitPruneError(
                f"{type(each).__name__} copies the model before {type(pruning).__name__} has prepared it; "
                "add it behind that one"
            )
    if inside and mending.lora is not None:
        raise LitPruneError(
            f"the AveragedModel at {next(iter(inside))!r} has copied the model without adapters, and pairs parameters "
            "by their position; leave healing out, or take EMAWeightAveraging behind the callback instead"
        )
    for name in [*(type(each).__name__ for each in _averaging(trainer)), *(["AveragedModel"] if inside else [])]:
        compensation = pruner.plan.compensation.get("name", "none")
        if mending.distillation is not None or compensation != "none":
            what = "distill" if mending.distillation is not None else f"compensate={compensation!r}"
            raise LitPruneError(f"{name} averages weights from before and after {what} changes them; leave one out")
        sharding.require_whole_model(trainer, name, "take it out")
    for name in _other_copies(module, pruner.model):
        rank_zero_warn(
            f"the module holds another copy of the model at {name!r}, which stays as it is: right for a teacher; an "
            "average made by hand would mix layers, so let torch's AveragedModel or EMAWeightAveraging make it"
        )


def averages_in(module: nn.Module, model: nn.Module) -> dict[str, PreTrainedModel]:
    """Averages of a model (`torch.optim.swa_utils.AveragedModel`) that a module holds, by path.

    Args:
        module: Perhaps a copy of that which holds the model.
        model: That is averaged; it may have lost something that its averages have not.
    """
    return {
        ".".join(filter(None, (path, "module", inner))): average
        for path, each in module.named_modules()
        if isinstance(each, AveragedModel)
        for inner, average in language_models(each.module)
        if _shapes(model).items() <= _shapes(average).items()
    }


def remove_from_averages(trainer: L.Trainer, sublayers: Iterable[SublayerId], name: str | None) -> None:
    """Take sublayers out of every averaged model.

    Args:
        trainer: With its callbacks and module.
        sublayers: That the trained model has lost.
        name: Attribute path of the language model in the module, where there are several.
    """
    gone = list(sublayers)
    for model in list(averages(trainer, name)):
        remove(model, gone, trainer.optimizers)


def averages(trainer: L.Trainer, name: str | None) -> Iterator[PreTrainedModel]:
    """The language models in all averages, by callbacks and in the module.

    Args:
        trainer: With its callbacks and module.
        name: As for `remove_from_averages`.
    """
    own = model_in(trainer.lightning_module, name)
    yield from averages_in(trainer.lightning_module, own).values()
    for each in _averaging(trainer):
        average = each._average_model
        if average is not None:  # none in a run that does not fit
            module = average.module if isinstance(each, WeightAveraging) else average
            yield model_in(module, name)
            yield from averages_in(module, own).values()
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(each, WeightAveraging | StochasticWeightAveraging):
            for value in vars(each).values():
                yield from averages_in(value, own).values() if isinstance(value, AveragedModel) else ()


def _averaging(trainer: L.Trainer) -> Iterator[Any]:
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(each, WeightAveraging | StochasticWeightAveraging):
            yield each


def _other_copies(module: nn.Module, model: nn.Module) -> Iterator[str]:
    """Paths of models outside averages that are built like one of them."""
    for path, other in language_models(module):
        if other is not model and _shapes(other) == _shapes(model):
            yield path


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in model.named_parameters()}
