"""This process's validation batches, as the trainer would give them to the module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lit_prune.errors import DataError
from lit_prune.measure import input_ids_of, labels_of, tensors_of

from .asking import given_to_the_model, validating


@dataclass(frozen=True)
class ValidationBatch:
    """One batch behind the hooks that transfer it, on the CPU, as `validation_step` takes it with its two numbers.

    `inputs` is what the model is given of it where that is another thing, see `inputs_of`; None where it is the batch.
    """

    whole: Any
    number: int
    loader: int
    inputs: Any = None

    @property
    def scored(self) -> dict[str, Tensor]:
        """What a causal language model takes of the batch, and labels; a batch without `input_ids` is refused."""
        inputs = self.whole if self.inputs is None else self.inputs
        try:
            shape = tuple(input_ids_of(inputs).shape)
        except DataError as error:
            raise DataError(
                f"{error}; your validation_step gives the model none either, and a method batch_to_inputs(batch) of "
                "your module can make one of it"
            ) from error
        given = tensors_of(inputs)
        labels = given.get("labels")
        if labels is not None and tuple(labels.shape) != shape:
            return given  # of whole sequences: what measures knows whether the model is one that classifies
        return {**given, "labels": labels_of(inputs)}


def validation_batches(trainer: L.Trainer, limit: int | None) -> list[ValidationBatch]:
    """This process's validation batches, at most `limit` of each loader besides the trainer's own limit.

    A trainer without any is refused.
    """
    batches: list[ValidationBatch] = []
    if trainer.enable_validation:
        # The loop sets its loaders up at its first run; before the first epoch there may have been none.
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        with validating(trainer):
            batches = list(_first_batches(trainer, limit))
    if not batches:
        raise DataError(
            "sublayers are scored and analysed on validation batches, and the trainer has none: pass val_dataloaders "
            "whose batches are dicts with `input_ids`, define validation_step, and keep limit_val_batches above 0"
        )
    return batches


def inputs_of(trainer: L.Trainer, batch: Any) -> Any:
    """What a language model takes of a loader's batch, behind the hooks that transfer it, back on the CPU.

    That is what the module's `batch_to_inputs` makes of it, where it has one; the batch, where it is a dict with
    `input_ids`; else what the module's `validation_step` calls the model with.
    """
    return _inputs_of(trainer, _transferred(trainer, batch), 0, 0)


def _transferred(trainer: L.Trainer, batch: Any, loader: int = 0) -> Any:
    """A batch behind the hooks of module or data module that transfer it to the device, back on the CPU."""
    module = trainer.lightning_module
    batch = module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=loader)
    batch = trainer.strategy.batch_to_device(batch, dataloader_idx=loader)
    return move_data_to_device(batch, torch.device("cpu"))


def _inputs_of(trainer: L.Trainer, batch: Any, number: int, loader: int) -> Any:
    adapt = getattr(trainer.lightning_module, "batch_to_inputs", None)
    if adapt is not None:
        return adapt(batch)
    try:
        input_ids_of(batch)
    except DataError:
        found = given_to_the_model(trainer, batch, number, loader)
        return batch if found is None else found
    return batch


def _first_batches(trainer: L.Trainer, limit: int | None) -> Iterator[ValidationBatch]:
    loaders: list[Iterable[Any]] = tree_leaves(trainer.val_dataloaders)
    limits = trainer.num_val_batches
    for place, (loader, most) in enumerate(zip(loaders, tree_leaves(limits), strict=False)):
        allowed = min(most, math.inf if limit is None else limit)
        for number, batch in enumerate(islice(loader, None if math.isinf(allowed) else int(allowed))):
            whole = _transferred(trainer, batch, place)
            yield ValidationBatch(whole, number, place, _inputs_of(trainer, whole, number, place))
