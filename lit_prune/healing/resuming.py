"""A healing that was stopped goes on: windows in an order that any epoch knows, and the training's state in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Sampler

from lit_prune.errors import DataError
from lit_prune.files import file_aside, to_json

WINDOWS_FILE, STATE_FILE = "windows.safetensors", "state.ckpt"


class Stretches(Sampler[int]):
    """Numbers of windows in a random order, over and over, of which every epoch takes the next stretch.

    Epochs are so long that a validation comes behind each: the state behind any is one to go on from, bit for bit.
    Processes take turns with the windows of a stretch, so that a step of all takes what lies next in the order.

    Args:
        number: Number of windows.
        length: Number of windows that a process takes in an epoch.
        seed: Decides the order, another one in every pass over the windows.
    """

    def __init__(self, number: int, length: int, seed: int) -> None:
        self._number, self._length = number, length
        self._draw = torch.Generator().manual_seed(seed)
        self._order: list[int] = []
        self._first, self._stride = 0, 1

    def begin(self, number: int, rank: int = 0, world_size: int = 1) -> None:
        """Begin the next epoch behind so many windows, as one of several processes."""
        # Not by the epoch that Lightning tells samplers: that is another where a training goes on.
        self._first, self._stride = number + rank, world_size

    def __len__(self) -> int:
        """Number of windows that a process takes in an epoch."""
        return self._length

    def __iter__(self) -> Iterator[int]:
        """The numbers of an epoch's windows."""
        end = self._first + self._length * self._stride
        while len(self._order) < end:
            # The seed of its workers, which a DataLoader that shuffles draws first: the first pass is as one has it.
            torch.empty((), dtype=torch.int64).random_(generator=self._draw)
            self._order += torch.randperm(self._number, generator=self._draw).tolist()
        return iter(self._order[self._first : end : self._stride])


class KeepState(Callback):
    """Writes the state of a training into a file behind every epoch; the file is whole, or that of the last epoch."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write it, behind the validation."""
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self._path)  # all take part, and the first alone writes
            return
        with file_aside(self._path) as aside:
            trainer.save_checkpoint(aside)


class Pause(Callback):
    """Ends a training behind so many epochs, of all that it has had."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End it, behind the validation."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= self._epochs


class Stay:
    """The folder in which a healing keeps what it goes on from: its windows, and the state of the training.

    Args:
        folder: The folder.
        settings: What the windows are of, in plain types.

    Raises:
        DataError: What is there is of a healing with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self._settings = folder, to_json(dict(settings))
        if self.is_begun:
            with safe_open(folder / WINDOWS_FILE, "pt") as file:
                there = json.loads(file.metadata()["settings"])
            if other := sorted(
                name for name in {*there, *self._settings} if there.get(name) != self._settings.get(name)
            ):
                raise DataError(
                    f"{folder} is of a healing with other {', '.join(other)}: remove it, or name another output"
                )

    def state(self, number: int = 0) -> Path:
        """The file with the state of a training; of several by its number."""
        return self.folder / (f"{number}-{STATE_FILE}" if number else STATE_FILE)

    @property
    def is_begun(self) -> bool:
        """Whether windows are kept."""
        return (self.folder / WINDOWS_FILE).exists()

    def windows(self, draw: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What is trained and measured on, by name: what is kept, or is drawn now."""
        path = self.folder / WINDOWS_FILE
        if not self.is_begun:
            drawn = {name: rows.contiguous() for name, rows in draw().items()}
            with file_aside(path) as aside:
                save_file(drawn, aside, {"settings": json.dumps(self._settings)})
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
