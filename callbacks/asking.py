"""A module's `validation_step`, called without leaving a trace of having been asked."""

from __future__ import annotations

import copy
import inspect
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.trainer.states import RunningStage
from torch import nn
from torchmetrics import Metric

from lit_prune.measure import tensors_of
from lit_prune.surgery import evaluating

from .trainers import language_models


@contextmanager
def validating(trainer: L.Trainer) -> Iterator[None]:
    """Let hooks of the user see a trainer that validates, in a `with` block."""
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage


@contextmanager
def asked_alone(trainer: L.Trainer) -> Iterator[None]:
    """Let `validation_step` be called in a `with` block: what the module has counted or collected is as before then."""
    module = trainer.lightning_module
    counted = [(part, copy.deepcopy(_state(part))) for part in module.modules() if isinstance(part, Metric)]
    internal = vars(L.LightningModule()).keys()
    own = {name: value for name, value in vars(module).items() if name not in internal}
    collected = {name: copy.copy(value) for name, value in own.items() if isinstance(value, list | dict | set | deque)}
    try:
        with evaluating(module), validating(trainer), trainer.precision_plugin.val_step_context():
            yield
    finally:
        for metric, state in counted:
            vars(metric).update(state)
        for name in vars(module).keys() - internal - own.keys():
            del vars(module)[name]
        vars(module).update(own)
        for name, before in collected.items():
            own[name].clear()
            own[name].extend(before) if isinstance(before, list | deque) else own[name].update(before)


def step(module: L.LightningModule, batch: Any, number: int, loader: int) -> tuple[Any, dict[str, Any]]:
    """What `validation_step` returns of a batch on the CPU, and what it logs, which goes nowhere."""
    logged: dict[str, Any] = {}
    given = (move_data_to_device(batch, module.device), number, loader)[: _num_arguments(module.validation_step)]
    # Attributes of the object hide the methods of its class.
    vars(module).update(
        log=lambda name, value, *_, **__: logged.update({name: value}),
        log_dict=lambda dictionary, *_, **__: logged.update(dictionary),
    )
    try:
        return module.validation_step(*given), logged
    finally:
        del vars(module)["log"], vars(module)["log_dict"]


def given_to_the_model(trainer: L.Trainer, batch: Any, number: int, loader: int) -> dict[str, Any] | None:
    """The tensors that `validation_step` calls the language model with, by names, on the CPU; it ends there.

    None where it calls none, or ends with an error before: whoever runs it next will see that.
    """
    models = [model for _, model in language_models(trainer.lightning_module)]
    hooks = [model.register_forward_pre_hook(_caught, with_kwargs=True) for model in models]
    try:
        with asked_alone(trainer):
            step(trainer.lightning_module, batch, number, loader)
    except _Called as call:
        moved: dict[str, Any] = move_data_to_device(tensors_of(call.arguments), torch.device("cpu"))
        return moved
    except Exception:
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return None


class _Called(BaseException):
    """The language model was called; no `except Exception` of a user's step holds this up."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


def _caught(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    raise _Called({**bound, **bound.get("kwargs", {})})


def _state(metric: Metric) -> dict[str, Any]:
    names = (*metric._defaults, "_update_count", "_computed")
    return {name: vars(metric)[name] for name in names if name in vars(metric)}


def _num_arguments(method: Any) -> int:
    kinds = [parameter.kind for parameter in inspect.signature(method).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return 3
    return sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
