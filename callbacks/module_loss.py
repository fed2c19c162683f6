"""The loss that a module itself finds in a validation batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from lit_prune.anatomy import language_model
from lit_prune.errors import DataError, LitPruneError
from lit_prune.loading.processes import processes_of_trainer
from lit_prune.measure import Progress, WhatIf, objective_of, on_device
from lit_prune.scorers import Scorer
from lit_prune.surgery import evaluating

from .asking import asked_alone, step
from .validation import ValidationBatch

LOSSES = ("tokens", "module")
"""What sublayers are scored by: the mean loss of predicting labels from the tokens before them, or the module's own."""
NAMES = ("val_loss", "loss", "valid_loss", "validation_loss")
"""What a loss is called among what is returned or logged; else it is the only name that contains `loss`."""


def require_scorable(loss: str, scorer: Scorer) -> None:
    """Refuse a scorer that wants gradients, which the figure that a module reports does not give."""
    if loss == "module" and scorer.gradients:
        raise LitPruneError(
            f"{type(scorer).__name__} wants gradients, and loss='module' gives none; choose another scorer, or leave "
            "loss out"
        )


def measure(
    trainer: L.Trainer, model: Any, batches: Sequence[ValidationBatch], loss: str, *, progress: Progress | None = None
) -> WhatIf:
    """A measure of a model in training on this process's batches, over all processes and in the trainer's precision.

    Of `LOSSES`, `module` takes one full pass of `validation_step` for every loss.
    """
    processes, autocast = processes_of_trainer(trainer), trainer.precision_plugin.forward_context
    scored = [batch.scored for batch in batches]
    if loss == "tokens":
        return WhatIf(model, scored, processes=processes, autocast=autocast, progress=progress)
    objective = objective_of(language_model(model))
    num_targets = [objective.num_targets(batch).double() for batch in objective.read(scored)]

    def loss_sums(index: int) -> Tensor:
        sums = _own_loss(trainer, batches[index]) * num_targets[index]
        return sums.masked_fill(num_targets[index] == 0, 0.0)  # the mean over nothing is NaN

    context = partial(asked_alone, trainer)
    return WhatIf(model, scored, processes=processes, autocast=context, progress=progress, by_full_pass=loss_sums)


def check_loss(trainer: L.Trainer, model: Any, batches: Sequence[ValidationBatch], loss: str) -> None:
    """Say where sublayers would be scored by another loss than the module's own, with both figures of one batch.

    Where the module's own is wanted, a `validation_step` that tells of none is refused.
    """
    first, module = batches[0], trainer.lightning_module
    with asked_alone(trainer):
        if loss == "module":
            _own_loss(trainer, first)
            return
        try:
            own = _reported(trainer, first)
        except Exception as error:  # the training itself may go well
            rank_zero_warn(f"validation_step of {type(module).__name__} cannot be asked for its loss: {error!r}")
            return
    if own is None or not math.isfinite(own):
        return  # the scoring says so
    ours = _token_loss(trainer, model, first)
    if ours is not None and not math.isclose(own, ours, rel_tol=_rounding(trainer, model), abs_tol=1e-6):
        rank_zero_warn(
            f"validation_step of {type(module).__name__} finds a loss of {own:.4f} in the first validation batch, and "
            f"sublayers are scored by another, {ours:.4f}: the mean over `labels` (else `input_ids`), where the logits "
            "at one position predict the label at the next, padding left out. If labels are shifted already, or the "
            "loss is another one, pass SublayerPruneCallback(loss='module'), which scores by validation_step"
        )


def _token_loss(trainer: L.Trainer, model: Any, batch: ValidationBatch) -> float | None:
    """The mean loss that sublayers are scored by, None where nothing is predicted."""
    with evaluating(model), trainer.precision_plugin.forward_context():
        objective = objective_of(model)
        (scored,) = objective.read([on_device(batch.scored, model.device)])
        num_targets = float(objective.num_targets(scored).sum())
        total = float(objective.of_logits(objective.logits(scored), scored).sum())
    return total / num_targets if num_targets else None


def _own_loss(trainer: L.Trainer, batch: ValidationBatch) -> float:
    loss = _reported(trainer, batch)
    if loss is None:
        raise DataError(
            f"loss='module' scores by validation_step of {type(trainer.lightning_module).__name__}, which tells of no "
            f"loss: let it return the mean loss of a batch, or log it as one of {', '.join(NAMES)}"
        )
    return loss


def _reported(trainer: L.Trainer, batch: ValidationBatch) -> float | None:
    module = trainer.lightning_module
    for part in module.modules():
        if isinstance(part, Metric):
            part.reset()  # what it says then is of this batch alone
    returned, logged = step(module, batch.whole, batch.number, batch.loader)
    return _loss_in(returned, logged)


def _loss_in(returned: Any, logged: Mapping[str, Any]) -> float | None:
    if (number := _number(returned)) is not None:
        return number
    told = {**logged, **(returned if isinstance(returned, Mapping) else {})}
    numbers = {name: number for name, value in told.items() if (number := _number(value)) is not None}
    names = [name for name in NAMES if name in numbers] or [name for name in numbers if "loss" in name]
    return numbers[names[0]] if names and (names[0] in NAMES or len(names) == 1) else None


def _number(value: Any) -> float | None:
    value = value.compute() if isinstance(value, Metric) else value
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _rounding(trainer: L.Trainer, model: Any) -> float:
    exact = model.dtype in (torch.float32, torch.float64) and str(trainer.precision).startswith(("32", "64"))
    return 1e-3 if exact else 3e-2
