"""`lit-prune fit`, `validate`, `test`: LightningCLI over `LitCausalLM` and `TextDataModule`."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import LitLogger, Logger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_prune.callbacks import SublayerPruneCallback
from lit_prune.callbacks.trainers import run_folder
from lit_prune.commands.launching import fair_threads, part
from lit_prune.commands.outcomes import removed_in_words, say_next, what_next
from lit_prune.commands.recipes import with_recipes
from lit_prune.data import TextDataModule
from lit_prune.errors import LitPruneError
from lit_prune.files import say
from lit_prune.loading.checksums import require_intact_checkpoint
from lit_prune.loading.untrusted import read_settings, require_plain_metadata
from lit_prune.report import log_files
from lit_prune.training import LitCausalLM

NO_PRUNING = (
    "nothing will be pruned: there is no SublayerPruneCallback; add --trainer.callbacks+=SublayerPruneCallback "
    "--trainer.callbacks.amount=0.2 --trainer.callbacks.save_to=pruned, or begin with --config quickstart"
)

PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet-ml", "LitLogger": "litlogger"}
"""What Lightning's loggers need beside what lit-prune comes with, by their classes' names."""

# Lightning made it a logger of Fabric alone: a Trainer takes it, and the parser of a Trainer's settings does not.
Logger.register(LitLogger)


def run(program: str, arguments: Sequence[str]) -> None:
    """Run LightningCLI with the verb that a program's name, such as `lit-prune fit`, ends with."""
    command = [program.rpartition(" ")[2], *with_recipes(arguments)]
    if sys.argv[1:] == [command[0], *arguments]:
        sys.argv[1:] = command
    torch.set_num_threads(fair_threads(os.environ, torch.get_num_threads()))
    try:
        PruneCLI(
            LitCausalLM,
            TextDataModule,
            # Lightning warns of arguments that are given twice.
            args=None if sys.argv[1:] == command else command,
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "lit-prune", "description": "Prune inside a Lightning run.", "default_env": True},
            trainer_defaults={"callbacks": EndTogether()},
            save_config_callback=SaveConfig,
            # A second run into one folder describes itself, not the first.
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
        )
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)  # Lightning's own exit code says success
    part()


class PruneCLI(LightningCLI):
    """LightningCLI that honours what `fabric run` was told and refuses to train the same model twice."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs that lit-prune offers."""
        return {verb: LightningCLI.subcommands()[verb] for verb in ("fit", "validate", "test")}

    def _parse_ckpt_path(self) -> None:
        """Take the hyperparameters of a checkpoint as Lightning does, but no classes, and no leave to run code."""
        path = self.config[self.config.subcommand].ckpt_path
        if path:
            require_plain_metadata(path)
        if path and Path(path).is_file():
            settings, given = read_settings(path), self.config[self.config.subcommand].model
            # The user's leave is for the model that the user names.
            is_same = settings.get("model", given.model) == given.model
            settings["trust_remote_code"] = given.trust_remote_code and is_same
            self.config = self.parser.parse_object({self.config.subcommand: {"model": settings}}, self.config)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise LitPruneError(f"seed_everything: {error}") from error

    def before_instantiate_classes(self) -> None:
        """Give the trainer what `fabric run` got, which it ignores; let no checkpoint run code, from a URL too.

        Raises:
            LitPruneError: The package of a logger is not installed.
        """
        settings = self.config[self.config.subcommand]
        require_logger_packages(settings.trainer.logger)
        if settings.weights_only is None:
            settings.weights_only = True
        for name, value in launcher_settings(os.environ).items():
            settings.trainer[name] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, unless the launched processes would each train on their own."""
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise LitPruneError(f"the trainer cannot be made: {error}") from error
        require_world(os.environ, trainer.num_devices * trainer.num_nodes)
        require_checkpoint(self.config[self.config.subcommand].ckpt_path, trainer.strategy)
        return trainer

    def before_fit(self) -> None:
        """Say so where nothing will be pruned."""
        if self.trainer.is_global_zero and not self._pruning():
            say(NO_PRUNING)

    def after_fit(self) -> None:
        """Say what went, how the weights were trained, and where the model is."""
        if not self.trainer.is_global_zero:
            return
        trained = f"trained with precision {self.trainer.precision}"
        for callback in self._pruning():
            assert callback.plan is not None
            kinds = {str(each.dtype).removeprefix("torch.") for each in self.model.parameters()}
            say("\n".join([*removed_in_words(callback.plan), f"{trained}, weights in {' and '.join(sorted(kinds))}"]))
            if (folder := callback.saving.written) is not None:
                say(f"written: {folder}")
                say_next(what_next(str(folder), callback.plan.model.name))

    def _pruning(self) -> list[SublayerPruneCallback]:
        callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
        return [callback for callback in callbacks if isinstance(callback, SublayerPruneCallback)]


class SaveConfig(SaveConfigCallback):
    """Saves the settings in the run's folder, as Lightning does for TensorBoard and CSV alone, and logs the file."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask for the folder on every process, then save from the first."""
        self.folder = run_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / self.config_filename
        self.parser.save(self.config, str(file), skip_none=False, overwrite=self.overwrite, multifile=self.multifile)
        for logger in trainer.loggers:
            log_files(logger, [file])


class EndTogether(Callback):
    """Lets SIGTERM end all processes of several: Lightning's handler makes them wait for one another, often for ever.

    One process alone ends after its batch, as Lightning has it.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler, which it takes away itself at the end."""
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, lambda number, frame: self._end(trainer, number))

    @staticmethod
    def _end(trainer: Trainer, number: int) -> None:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)  # those that this process has started
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def require_logger_packages(logger: Any) -> None:
    """Refuse, before anything is made, one of Lightning's loggers whose package is not installed."""
    for each in logger if isinstance(logger, list) else [logger]:
        name = getattr(each, "class_path", "").rpartition(".")[2]
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name].replace("-", "_")) is None:
            raise LitPruneError(f"{name} needs a package that is not installed: pip install {PACKAGES[name]}")


def launcher_settings(environment: Mapping[str, str]) -> dict[str, str | int]:
    """The trainer's settings that `fabric run` was given; none when something else started the process.

    Example:
        >>> launcher_settings({"LT_CLI_USED": "1", "LT_DEVICES": "2", "LT_STRATEGY": "ddp"})
        {'devices': 2, 'strategy': 'ddp'}
    """
    if environment.get("LT_CLI_USED") != "1":
        return {}
    names = ("accelerator", "devices", "num_nodes", "precision", "strategy")
    given = {name: environment[f"LT_{name.upper()}"] for name in names if f"LT_{name.upper()}" in environment}
    return {name: int(value) if value.isdecimal() and name != "precision" else value for name, value in given.items()}


def require_checkpoint(path: str | None, strategy: Strategy) -> None:
    """Refuse, before any process is started, a checkpoint that is not there, or in a form that is not read.

    Lightning's keywords and what lies elsewhere are let through.
    """
    if not path or path in ("best", "last", "hpc") or path.startswith("registry") or "://" in path:
        return
    if not Path(path).exists():
        raise LitPruneError(f"there is no checkpoint {path}")
    if Path(path).is_dir():
        require_intact_checkpoint(path)
        if isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
            raise LitPruneError(
                f"{path} is a distributed checkpoint, which {type(strategy).__name__} does not read; give "
                "ModelParallelStrategy, with any number of devices"
            )


def require_world(environment: Mapping[str, str], world_size: int) -> None:
    """Refuse a trainer that does not know of the other processes that torchrun started."""
    launched = int(environment.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in environment else 1
    if launched not in (1, world_size):
        raise LitPruneError(
            f"{launched} processes were launched, and the trainer was told of {world_size}: they would train apart and "
            f"overwrite each other. Give --trainer.devices={launched} --trainer.strategy=ddp"
        )
