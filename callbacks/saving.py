"""What a fit leaves behind: the folder of the pruned model, and the random state that a checkpoint goes on from."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.errors import LitPruneError
from lit_prune.export import require_empty, save
from lit_prune.files import reserved
from lit_prune.loading.fsdp import whole_copy
from lit_prune.loading.processes import processes_of_trainer
from lit_prune.loading.sources import tokenizer_beside
from lit_prune.plan import PrunePlan

from . import trainers


class Saving:
    """The folder that a fit saves its pruned model into: reserved at set-up, written at the end."""

    def __init__(self) -> None:
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
        """Write the model from process 0, where a folder was prepared; call it on every process."""
        if (target := self._target) is not None:
            whole = cast(PreTrainedModel, whole_copy(model))  # None on processes that do not save
            processes_of_trainer(trainer).first(lambda: save(whole, target, tokenizer=self._tokenizer, plan=plan))

    def close(self) -> None:
        """Let others have the folder."""
        self._target = None
        self._held.close()

    def _reserve(self, target: Path) -> None:
        try:
            self._held.enter_context(reserved(target))
        except BlockingIOError as error:
            raise LitPruneError(
                f"another fit is about to save its model as {target}; start this one again, or name another folder"
            ) from error
        except OSError as error:
            raise LitPruneError(f"cannot save a model as {target}: {error.strerror}") from error


def random_state() -> dict[str, Any]:
    """States of the generators of torch (CPU and CUDA), Python and numpy, as tensors, tuples and lists."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Go on where `random_state` was taken, so that a resumed run draws what the other would have drawn."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
