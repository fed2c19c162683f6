"""The averaged models that Lightning's callbacks keep beside the one that is trained: they lose what it loses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging, WeightAveraging
from transformers import PreTrainedModel

from lit_prune.callbacks import sharding
from lit_prune.callbacks.loop import model_in
from lit_prune.errors import LitPruneError
from lit_prune.plan import SublayerId
from lit_prune.pruner import Pruner
from lit_prune.surgery import remove


def require_possible(trainer: L.Trainer, pruning: Callback, pruner: Pruner, *, distill: bool) -> None:
    """Refuse what an averaged model could not follow.

    Args:
        trainer: With its callbacks.
        pruning: The callback that removes.
        pruner: Its own, before its first step.
        distill: Whether the dense model teaches.

    Raises:
        LitPruneError: With what to change.
    """
    for each in _averaging(trainer):
        name, callbacks = type(each).__name__, trainer.callbacks  # type: ignore[attr-defined]
        if callbacks.index(each) < callbacks.index(pruning):
            raise LitPruneError(
                f"{name} copies the model before {type(pruning).__name__} has prepared it; add it behind that one"
            )
        compensation = pruner.plan.compensation.get("name", "none")
        if distill or compensation != "none":
            what = "distill" if distill else f"compensate={compensation!r}"
            raise LitPruneError(f"{name} averages weights from before and after {what} changes them; leave one out")
        sharding.require_whole_model(trainer, name, "take it out of trainer.callbacks")


def remove_from_averages(trainer: L.Trainer, sublayers: Iterable[SublayerId], name: str | None) -> None:
    """Take sublayers out of every averaged model.

    Args:
        trainer: With its callbacks.
        sublayers: That the trained model has lost.
        name: Attribute path of the language model in the module, where there are several.
    """
    gone = list(sublayers)
    for model in averages(trainer, name):
        remove(model, gone)


def averages(trainer: L.Trainer, name: str | None) -> Iterator[PreTrainedModel]:
    """The language models in the averaged modules.

    Args:
        trainer: With its callbacks.
        name: As for `remove_from_averages`.
    """
    for each in _averaging(trainer):
        average = each._average_model
        if average is not None:  # none in a run that does not fit
            yield model_in(average.module if isinstance(each, WeightAveraging) else average, name)


def _averaging(trainer: L.Trainer) -> Iterator[Any]:
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(each, WeightAveraging | StochasticWeightAveraging):
            yield each
