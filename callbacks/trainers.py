"""What the callbacks need of a trainer and its module: the model, batches, processes, the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel

from lit_prune.anatomy import classifies, require_no_prompt
from lit_prune.errors import LitPruneError, ModelError
from lit_prune.loading.processes import processes_of_trainer
from lit_prune.loading.trees import is_a


def model_in(module: L.LightningModule, name: str | None) -> PreTrainedModel:
    """The Hugging Face causal language model that a LightningModule holds, at an attribute path such as `student.lm`.

    None finds the only one. A model with a trained prompt before it is refused.
    """
    require_no_prompt(module)
    if name is not None:
        return _named_model(module, name)
    found = language_models(module)
    if len(found) != 1:
        held = [path for path, part in module.named_modules() if isinstance(part, PreTrainedModel)]
        raise ModelError(
            f"{type(module).__name__} holds {len(found)} Hugging Face causal language models (found: "
            f"{', '.join(held) or 'none'}); create it in __init__, and where there are several say which with "
            "model='attribute.path'"
        )
    return found[0][1]


def language_models(module: nn.Module) -> list[tuple[str, PreTrainedModel]]:
    """Hugging Face models that can be pruned in a module, by path: causal ones and classifiers, no `AveragedModel`."""
    found = {path: part for path, part in module.named_modules() if isinstance(part, PreTrainedModel | AveragedModel)}
    return [
        (path, model) for path, model in found.items()
        if isinstance(model, PreTrainedModel) and (model.can_generate() or classifies(model))
        and not any(path != other and path.startswith(f"{other}." if other else "") for other in found)
    ]  # fmt: skip


def _named_model(module: L.LightningModule, name: str) -> PreTrainedModel:
    try:
        model = attrgetter(name)(module)
    except AttributeError as error:
        raise ModelError(f"{type(module).__name__} has no {name!r}: {error}") from error
    unwrap = getattr(model, "get_base_model", None)
    model = unwrap() if callable(unwrap) else model
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"{name!r} is a {type(model).__name__}, not a Hugging Face model")
    return model


def callbacks_of(trainer: L.Trainer) -> list[Callback]:
    """All callbacks of a trainer, in their order."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def leaves_nothing(trainer: L.Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which tries everything and leaves nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def epochs_of(trainer: L.Trainer) -> int | None:
    """Epochs of the run, None where nobody knows: the trainer then has None, or -1."""
    return max(0, trainer.max_epochs or 0) or None


def shards(trainer: L.Trainer) -> bool:
    """Whether the trainer's strategy lets a module shard its model over processes (FSDP2)."""
    return is_a(trainer.strategy, ModelParallelStrategy)


def on_holders(trainer: L.Trainer, work: Callable[[], object]) -> None:
    """Run a model on process 0 while the others wait, or on all at once where each holds a shard of it."""
    if shards(trainer):
        work()
    else:
        processes_of_trainer(trainer).first(work)


def renew_ddp(trainer: L.Trainer) -> None:
    """Wrap the module in DDP again after parameters are gone: its reducer would wait for their gradients for ever."""
    strategy = trainer.strategy
    if not is_a(strategy, DDPStrategy) or not isinstance(strategy.model, DistributedDataParallel):
        return
    setup_model = getattr(strategy, "_setup_model", None)
    register_hooks = getattr(strategy, "_register_ddp_hooks", None)
    if setup_model is None or register_hooks is None or strategy.lightning_module is None:
        raise LitPruneError(
            "this version of lightning does not let a module be wrapped in DDP again; "
            "use strategy='ddp_find_unused_parameters_true'"
        )
    strategy.model = setup_model(strategy.lightning_module)
    register_hooks()


def run_folder(trainer: L.Trainer) -> Path:
    """The folder where this run writes, the one with its checkpoints. Call it on every process.

    TensorBoard and CSV give each run a folder. Of other loggers it is made of the first one's name and version, as
    Lightning does for checkpoints: what they say is where all runs are. Without a logger it is the trainer's root.
    """
    logger = trainer.logger
    if logger is None or is_a(logger, TensorBoardLogger, CSVLogger):
        return Path(trainer.log_dir or trainer.default_root_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    folder = Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
    return trainer.strategy.broadcast(folder)  # others than the first know no version


def logged_step(trainer: L.Trainer) -> int:
    """Where on Lightning's axis something is logged now: batches that stepped, however many optimizers step in each."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def calibration_source(trainer: L.Trainer, loss: str = "tokens") -> str:
    """The origin of this process's validation batches in words, for a plan's readers."""
    data = getattr(trainer, "datamodule", None)
    if data is None:
        source = "the trainer's validation loaders"
    else:
        named = data.hparams.get("source") if isinstance(data.hparams, Mapping) else None
        source = f"{type(data).__name__}{f' of {named}' if named else ''}, validation"
    source += ", scored by validation_step" if loss == "module" else ""
    shared = trainer.world_size > 1
    return f"{source}, share of process {trainer.global_rank} of {trainer.world_size}" if shared else source
