"""What a fit leaves behind: the folder of the pruned model."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import cast

import lightning as L
from filelock import Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.errors import LitPruneError
from lit_prune.export import CARD_FILE, require_empty, save
from lit_prune.files import reserved
from lit_prune.loading.fsdp import whole_copy
from lit_prune.loading.processes import processes_of_trainer
from lit_prune.loading.sources import tokenizer_beside
from lit_prune.plan import PrunePlan
from lit_prune.report import log_files

from . import trainers


class Saving:
    """The folder that a fit saves its pruned model into: reserved at set-up, written at the end."""

    def __init__(self) -> None:
        self.written: Path | None = None  # what the last fit has left
        self._target: Path | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._held = ExitStack()

    def prepare(
        self, trainer: L.Trainer, module: L.LightningModule, model: PreTrainedModel, folder: str | None
    ) -> None:
        """Find the tokenizer, and keep other fits from the folder until `close`."""
        self.close()
        if not folder or trainers.leaves_nothing(trainer):
            return
        target = require_empty(trainers.run_folder(trainer) / folder)
        self._tokenizer = tokenizer_beside(module, model)
        processes_of_trainer(trainer).first(lambda: self._reserve(target))
        self._target = target

    def save(self, trainer: L.Trainer, model: PreTrainedModel, plan: PrunePlan) -> None:
        """Write the model from process 0, where a folder was prepared, and log its card; call it on every process."""
        if (target := self._target) is not None:
            whole = cast(PreTrainedModel, whole_copy(model))  # None on processes that do not save
            self.written = target
            processes_of_trainer(trainer).first(lambda: save(whole, target, tokenizer=self._tokenizer, plan=plan))
            for logger in trainer.loggers:
                log_files(logger, [target / CARD_FILE])

    def close(self) -> None:
        """Let others have the folder."""
        self._target = None
        self._held.close()

    def _reserve(self, target: Path) -> None:
        try:
            self._held.enter_context(reserved(target))
        except Timeout as error:
            raise LitPruneError(
                f"another fit is about to save its model as {target}; start this one again, or name another folder"
            ) from error
        except OSError as error:
            raise LitPruneError(f"cannot save a model as {target}: {error.strerror}") from error
