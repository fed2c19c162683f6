"""`SublayerAnalysisCallback`: what the sublayers do, drawn before training and whenever some of them have gone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from lit_prune.errors import LitPruneError
from lit_prune.evaluation import EMBEDDING, Analysis, analyse
from lit_prune.loading.processes import processes_of_trainer
from lit_prune.loading.trees import EitherCallback
from lit_prune.plan import KINDS, SublayerId
from lit_prune.pruning import progress_bar
from lit_prune.report import log_figure, log_files, log_scalars, write_analysis
from lit_prune.surgery import removed_sublayers, require_understood

from . import requirements, trainers
from .module_loss import measure
from .validation import validation_batches


class SublayerAnalysisCallback(EitherCallback):
    """Draws the figures of `lit-prune analyse` on the validation batches, beside those from before training.

    At the start of the fit, after every epoch at whose end other sublayers are gone than at the last analysis, and
    every `every_n_epochs`. Leaves `analysis.json`, `analysis.md` and the pictures in `analysis/` in the run's folder,
    and logs the pictures and a few numbers. Works beside `SublayerPruneCallback`, in any order, and without it.

    Args:
        every_n_epochs: The number of epochs after which to analyse as well, whatever has changed; None does not.
        impact: Whether to measure RI and NRI: a what-if loss for every sublayer, where all else takes one pass.
        num_batches: The most batches of each validation loader; None takes all that the trainer validates.
        model: The attribute path of the model in your module, where there are several.
        folder: The folder for the files, in the run's folder unless absolute.
        progress: Whether to show a progress bar.

    Raises:
        LitPruneError: `every_n_epochs` is below 1.
        DataError: There are no validation batches (before the first epoch).
        ModelError: The module holds no such model.
        AnatomyError: Its blocks are not understood (before the first epoch).

    Example::

        callbacks = [SublayerPruneCallback(amount=0.2), SublayerAnalysisCallback(impact=False)]
        L.Trainer(max_epochs=5, callbacks=callbacks).fit(module, train_loader, val_loader)
    """

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        impact: bool = True,
        num_batches: int | None = None,
        model: str | None = None,
        folder: str = "analysis",
        progress: bool = True,
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise LitPruneError(f"every_n_epochs is 1 or more, or None; found {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self.impact = impact
        self.num_batches = num_batches
        self.model = model
        self.folder = folder
        self.progress = progress
        self.analyses: list[Analysis] = []
        self._removed: tuple[SublayerId, ...] = ()
        self._files: list[Path] = []  # of this fit, on process 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be analysed, and forget an earlier fit."""
        if stage == "fit":
            requirements.require_supported(trainer)
            requirements.require_whole_model(trainer, type(self).__name__, "take it out of trainer.callbacks")
            trainers.model_in(pl_module, self.model)
            self.analyses = []  # a checkpoint's come later, with load_state_dict
            self._files = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Analyse the model as it comes, unless a checkpoint brought what was found of it."""
        with isolate_rng():
            require_understood(trainers.model_in(pl_module, self.model))
        if not self.analyses:
            self._analyse(trainer, pl_module, "start")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Analyse again where something has gone, or the epoch is due."""
        number = trainer.current_epoch
        due = self.every_n_epochs is not None and (number + 1) % self.every_n_epochs == 0
        if due or self._removed != tuple(removed_sublayers(trainers.model_in(pl_module, self.model))):
            self._analyse(trainer, pl_module, f"epoch {number}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hand the files to the loggers, once: pictures of each analysis have been logged."""
        for logger in trainer.loggers:
            log_files(logger, [file for file in self._files if file.suffix != ".png"])

    def state_dict(self) -> dict[str, Any]:
        """What was found so far, in plain types."""
        return {
            "analyses": [asdict(analysis) for analysis in self.analyses],
            "removed": [str(sublayer) for sublayer in self._removed],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run has no model from before the training any more; its figures come from the checkpoint."""
        self.analyses = [Analysis.from_dict(analysis) for analysis in state_dict["analyses"]]
        self._removed = tuple(SublayerId.parse(name) for name in state_dict["removed"])

    def _analyse(self, trainer: L.Trainer, module: L.LightningModule, name: str) -> None:
        model = trainers.model_in(module, self.model)
        processes = processes_of_trainer(trainer)
        shown = self.progress and processes.is_first
        with isolate_rng(), progress_bar(f"{name}: analysing", shown=shown) as bar:
            what_if = measure(trainer, model, validation_batches(trainer, self.num_batches), "tokens", progress=bar)
            self.analyses.append(analyse(what_if, impact=self.impact, name=name))
        self._removed = tuple(removed_sublayers(model))
        if trainers.leaves_nothing(trainer):
            return
        folder = trainers.run_folder(trainer) / self.folder
        processes.first(lambda: self._report(trainer, folder))

    def _report(self, trainer: L.Trainer, folder: Path) -> None:
        settings = {"source": trainers.calibration_source(trainer), "num_batches": self.num_batches}
        side_by_side = [self.analyses[0], *self.analyses[1:][-1:]]
        self._files = write_analysis(folder, self.analyses, settings, shown=side_by_side)
        pictures, step = [file for file in self._files if file.suffix == ".png"], trainers.logged_step(trainer)
        for logger in trainer.loggers:
            log_scalars(logger, _scalars(self.analyses[-1]), step)
            for picture in pictures:
                log_figure(logger, f"analysis/{picture.stem}", picture, step)


def _scalars(found: Analysis) -> dict[str, float]:
    """Means over sublayers of a kind, shares of paths by kind, and the mean agreement before the last depth."""
    numbers: dict[str, float] = {}
    for kind in KINDS:
        own = [sublayer.similarity for sublayer in found.sublayers if sublayer.name.startswith(kind)]
        numbers |= {f"analysis/similarity_{kind}": mean(own)} if own else {}
    for group in (*KINDS, EMBEDDING) if found.paths else ():
        numbers[f"analysis/share_{group}"] = sum(path.share for path in found.paths if path.name.startswith(group))
    numbers["analysis/lens_agreement"] = mean(depth.agreement for depth in found.depths[:-1])
    return numbers
