"""The progress bar of a healing: how many of its steps are done, and the perplexity at the last validation."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from lit_prune.files import open_bar, time_left


class HealingBar(ProgressBar):
    """Counts the steps of a training whose number is known, where Lightning's bars count epochs, which are not."""

    def __init__(self) -> None:
        super().__init__()
        self._shown, self._bar, self._found = True, None, ""

    def disable(self) -> None:
        """Show nothing: Lightning asks for it on all processes but the first."""
        self._shown = False

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that something goes on ahead of the first step."""
        self._open(trainer)
        self._write("measuring" if not trainer.global_step else f"{self._found}, measuring")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the perplexity that was found."""
        self._found = f"perplexity {float(trainer.callback_metrics['val_ppl']):,.2f}"
        self._write(self._found)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, or go on, at the step that was reached."""
        self._open(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, and foretell the rest by those of this training."""
        bar: Any = self._bar
        bar.update(trainer.global_step - bar.n)
        done = bar.format_dict
        if (steps := done["n"] - done["initial"]) > 0:
            left = time_left(done["elapsed"] / steps * (done["total"] - done["n"]))
            self._write(", ".join(filter(None, (self._found, left))))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar away."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the bar away."""
        self._close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the bar away, which a validation alone has opened."""
        self._close()

    def _open(self, trainer: L.Trainer) -> None:
        if self._bar is None:
            self._bar = open_bar("healing", total=trainer.max_steps, reached=trainer.global_step, shown=self._shown)

    def _write(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(0)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
