"""What a checkpoint's structure asks of a trainer: brought in before weights, in every model that the run holds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import lightning as L
from torch import nn

from lit_prune.healing import merge_lora
from lit_prune.training import follow_checkpoints, restore_structure, structure_of

from . import averaging


class Following:
    """Keeps a model at the structure of what is loaded, from set-up to teardown."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self._lent: nn.Module | None = None

    def begin(self, trainer: L.Trainer, module: L.LightningModule, model: nn.Module, name: str | None) -> None:
        """Bring the model, and averages of it, to the structure of the checkpoint that the trainer will load.

        Args:
            trainer: With its strategy and callbacks.
            module: Loads the checkpoint.
            model: Its Hugging Face model.
            name: Attribute path of that in the module, where there are several.

        Raises:
            LitPruneError: It has adapters whose config no checkpoint can keep.
        """
        structure_of(model)  # tells now what would be told when the first checkpoint is written
        restore = partial(self._restore, trainer, model, name)
        self._held.callback(follow_checkpoints(module, trainer.strategy, restore))

    def end(self, *, keep: bool) -> None:
        """Let go of the module.

        Args:
            keep: Whether the adapters that a checkpoint brought are trained on; merged, they leave a whole model.
        """
        self._held.close()
        if self._lent is not None and not keep:
            merge_lora(self._lent)
        self._lent = None

    def _restore(self, trainer: L.Trainer, model: nn.Module, name: str | None, checkpoint: Mapping[str, Any]) -> None:
        averages = list(averaging.averages(trainer, name))  # as long as they are built alike
        if restore_structure(model, checkpoint, trainer.optimizers):
            self._lent = model
        for each in averages:
            restore_structure(each, checkpoint)
