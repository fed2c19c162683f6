"""`SublayerPruneCallback`: scores sublayers on validation batches and drops them between epochs of any training."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from lit_prune.costs import Costs
from lit_prune.data import fingerprint
from lit_prune.errors import DataError, LitPruneError
from lit_prune.healing import Distillation, LoraHealing
from lit_prune.loading.checksums import require_intact_checkpoint
from lit_prune.loading.processes import processes_of_trainer
from lit_prune.loading.randomness import random_state, restore_random_state
from lit_prune.loading.trees import EitherCallback
from lit_prune.measure import WhatIf
from lit_prune.plan import PrunePlan, PruneStep, Recipe, joined
from lit_prune.pruning import SearchBar
from lit_prune.searches import Goal, PerEpoch, Quota, Schedule
from lit_prune.surgery import require_forgetful, require_understood
from lit_prune.training import STRUCTURE_KEY, structure_of

from . import requirements, trainers
from .course import BY_DEFAULT, Course
from .followers import Following, follow_removal
from .mending import Mending
from .module_loss import LOSSES, check_loss, measure, require_scorable
from .saving import Saving
from .story import counted_costs, log_beginning, log_end, log_removal
from .training_text import training_batches, unnumbered
from .validation import inputs_of, validation_batches


class SublayerPruneCallback(EitherCallback):
    """Drops the least important sublayers at the start of epochs, so that every removal is trained on.

    `SublayerPruneCallback(amount=0.2)` spreads the removal evenly over the run: the first drop comes before the first
    epoch's training, and the target is met at the start of the last epoch. Before each removal every candidate is
    scored on the validation batches (NRI by default); a checkpoint holds the model that was validated.

    Works with any LightningModule that holds a Hugging Face causal language model, and any loaders whose batches are
    dicts with `input_ids`, or are made such by `batch_to_inputs(batch)` or `validation_step` of the module.

    Args:
        amount: The share of the whole model's cost to remove in the run, above 0 and below 1. With a schedule of its
            own it is the most that goes, and may be left out; with a plan it is all of that unless less is asked for.
        of: The cost that the amount is a share of: `params`, `flops`, `kv_cache`, or `latency`, which is measured once
            before the first epoch, without adapters and on process 0; see `lit_prune.prune`.
        max_rise: The most by which perplexity may rise above that before the first removal: 0.05 for 5 %. Without
            `amount` or schedule, as much goes as fits, in every epoch that drops: what is healed lets more go.
        schedule: How much goes in an epoch that drops: a number of removals (an int), a share of the model's cost (a
            float), or a callable of the epoch that returns either. None spreads `amount` evenly.
        start_epoch: The first epoch that drops, 0-based.
        every_n_epochs: The number of epochs from one drop to the next.
        num_epochs: The number of epochs to spread over, where the trainer does not know it (`max_steps`,
            `max_epochs=-1`).
        plan: A plan that a search found before, as a file or the folder that holds it: its removals are dropped in
            their order, and nothing is scored. It stands for `scorer`, `search`, `granularity` and `protect`.
        scorer: A scorer's name, a mapping such as `{name: nri, baseline: original}`, or an import path.
        search: `progressive`, `lazy`, `one_shot`, `portfolio` (a whole set, decided before the first drop), or an
            import path.
        granularity: What goes at a time: a `sublayer` of either kind, `attention` only, `mlp` only, a whole `block`.
        protect: What must stay, such as `attention.0`, `mlp.3`, `block.2`.
        compensate: What makes up for removals in weights that stay: `none`, `refit`, `scale` or `linear`; see `Recipe`.
            None is `refit`, after every drop and on training examples, where nothing speaks against it: a form of
            blocks that it is not possible for, examples without numbers, averaged weights, a sharded model.
            The plan says so then.
        healing: The settings of LoRA adapters, which are attached at set-up, trained between drops and merged at the
            end: `LoraHealing`, or True for its defaults. False trains the model's own weights.
        distill: With healing, what training steps learn from the model as it was at set-up, instead of from the text:
            `Distillation`, or True for its defaults. Of the dense weights only those that are removed or refitted are
            kept beside the model's, until the end.
        model: The attribute path of the model in your module, where there are several.
        loss: What scores: `tokens`, the mean loss of predicting each label from the tokens before it, or `module`, what
            your `validation_step` returns or logs, at a pass of the whole model for each sublayer.
        num_batches: The most batches of each validation loader to score on; None takes all that the trainer validates.
        save_to: The folder for the pruned model, in the run's folder unless absolute; None saves nothing.
        progress: Whether to show a progress bar while scoring.

    Raises:
        BudgetError: The amount or schedule cannot be, or cannot be reached (at set-up, before any work).
        DataError: There are no validation batches, or none that can be scored (before the first epoch).
        MeasureError: Losses are NaN or infinite while scoring; nothing is removed then.
        ModelError: The module holds no such model.

    Example::

        trainer = L.Trainer(max_epochs=5, callbacks=[SublayerPruneCallback(amount=0.2)])
        trainer.fit(module, train_loader, val_loader)
    """

    def __init__(
        self,
        amount: float | None = None,
        *,
        of: str | dict[str, Any] = "params",
        max_rise: float | None = None,
        schedule: PerEpoch | None = None,
        start_epoch: int = 0,
        every_n_epochs: int = 1,
        num_epochs: int | None = None,
        plan: str | None = None,
        scorer: str | dict[str, Any] = "nri",
        search: str | dict[str, Any] = "progressive",
        granularity: str = "sublayer",
        protect: list[str] | None = None,
        compensate: str | dict[str, Any] | None = None,
        healing: bool | LoraHealing = False,
        distill: bool | Distillation = False,
        model: str | None = None,
        loss: str = "tokens",
        num_batches: int | None = None,
        save_to: str | None = None,
        progress: bool = True,
    ) -> None:
        mended = BY_DEFAULT if compensate is None else compensate
        recipe = Recipe(scorer, search, granularity, protect or (), mended)
        rhythm = Schedule(schedule, start_epoch, every_n_epochs)
        self.course = Course(Goal(amount, of, max_rise), rhythm, num_epochs, recipe, plan)
        self.mending = Mending(healing, distill)
        if loss not in LOSSES:
            raise LitPruneError(f"loss is one of {' and '.join(LOSSES)}; found {loss!r}")
        self.model, self.loss, self.num_batches = model, loss, num_batches
        self.save_to, self.progress = save_to, progress
        self.saving = Saving()
        self._stage = ""
        self._is_of_plan = False  # the model at hand is that of the plan
        self._costs: Costs | None = None  # of the model when the fit began, for the loggers
        self._random_state: dict[str, Any] | None = None
        self._following = Following()

    @property
    def plan(self) -> PrunePlan | None:
        """What this callback removed so far and why; None before set-up."""
        return self.course.found.plan if self.course.found else None

    @property
    def state_key(self) -> str:
        """The name of its state in checkpoints, another for each granularity: several go in one trainer."""
        granularity = self.course.recipe.granularity
        named = self._generate_state_key(granularity=granularity)
        return type(self).__qualname__ if granularity == "sublayer" else named

    def whole_plan(self, trainer: L.Trainer) -> PrunePlan:
        """What all callbacks of this kind in the trainer removed so far, as one plan."""
        courses = [callback.course for callback in self._together(trainer)]
        return joined([(course.found.plan, course.num_earlier) for course in courses if course.found])

    @staticmethod
    def _together(trainer: L.Trainer) -> list[SublayerPruneCallback]:
        return [each for each in trainers.callbacks_of(trainer) if isinstance(each, SublayerPruneCallback)]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the model, refuse what cannot work, attach adapters before optimizers exist."""
        self._stage = stage
        self._following.end(keep=True)
        self.saving.close()
        model = trainers.model_in(pl_module, self.model)
        if stage == "fit":
            self._prepare(trainer, pl_module, model)
        self._is_of_plan = self.course.found is not None and self.course.found.model is model
        self._following.begin(trainer, pl_module, model, self.model)

    def _prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, model: PreTrainedModel) -> None:
        requirements.require_own_process(trainer)
        course, together = self.course, self._together(trainer)
        compensates = not course.mends_by_default and course.recipe.compensate != "none"
        requirements.require_supported(trainer, folds=self.mending.lora is not None or compensates)
        requirements.require_together(together, pl_module)
        self.mending.require_possible(pl_module)
        course.begin(model, str(getattr(pl_module, "model_name", "")))
        pruner, healing = course.pruner, together[0].mending
        if course.mends_by_default and (why := requirements.against_refit(trainer, pl_module, model, healing)):
            pruner.leave_uncompensated(why)
        requirements.require_scored_in_shards(trainer, pruner, course.allowance.goal.unit, self.mending)
        requirements.require_averages_follow(trainer, pl_module, self, pruner, self.mending)
        require_scorable(self.loss, pruner.scorer)
        epochs = trainers.epochs_of(trainer)
        course.allowance.require_possible(epochs, pruner)
        requirements.warn_of_monitors(trainer, course.allowance.last_drop(epochs))
        if self.save_to:
            healing.require_none_of_others(model)
        self.saving.prepare(trainer, pl_module, model, self.save_to)
        self.mending.attach(pl_module, model)
        # TensorBoard shows the first set that a run logs, and Lightning's own, of the module alone, comes after this.
        if self is together[-1]:
            log_beginning(trainer, pl_module.hparams_initial, together)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the random state of the checkpoint, ahead of the first draw of a shuffled loader."""
        if self._random_state is not None and trainer.world_size == 1:
            restore_random_state(self._random_state)
        self._random_state = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse unusable validation batches before any work is done."""
        pruner = self.course.pruner
        self.mending.loaded(pl_module.device)
        for optimizer in trainer.optimizers:
            require_forgetful(optimizer)
        if pruner.mends and (why := unnumbered(tree_leaves(trainer.train_dataloader))) is not None:
            if not self.course.mends_by_default:
                raise DataError(f"{why}, or another compensate")
            pruner.leave_uncompensated(why)
        with isolate_rng():
            require_understood(pruner.model)
            batches = validation_batches(trainer, self.num_batches)
            what_if = measure(trainer, pruner.model, batches, self.loss)
            check_loss(trainer, pruner.model, batches, self.loss)
            positions, autocast = what_if.num_positions, trainer.precision_plugin.forward_context
            self.course.allowance.price(pruner, positions, processes_of_trainer(trainer), autocast)
            self._costs = counted_costs(trainer, pruner, positions)
        source = trainers.calibration_source(trainer, self.loss)
        self.course.describe({"source": source, **fingerprint(what_if.batches)})

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score and drop what this epoch is due."""
        epoch = trainer.current_epoch
        if (quota := self.course.due(epoch, trainers.epochs_of(trainer))) is not None:
            self._drop(trainer, epoch, quota)
        self.course.last_epoch = epoch

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Score and drop, where Lightning has gone on at an epoch's start and told nobody that it begins."""
        if self.course.last_epoch < trainer.current_epoch:
            self.on_train_epoch_start(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Merge the adapters, save the pruned model, say what was reached."""
        if (trouble := self.course.end()) is not None:
            rank_zero_warn(trouble)
        self.mending.merge()
        self.saving.save(trainer, self.course.pruner.model, self.whole_plan(trainer))
        if self is self._together(trainer)[-1]:
            log_end(trainer, self.whole_plan(trainer))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave nothing of this callback on the model but what was removed."""
        self._following.end(keep=stage == "fit")
        self.saving.close()
        self.mending.detach()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tear down, since Lightning does not after an exception; what a worker refused is said here too."""
        self.teardown(trainer, pl_module, self._stage)
        if isinstance(exception, ProcessRaisedException) and trainer.state.fn == TrainerFn.FITTING:
            requirements.require_own_process(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose file has changed since it was written: torch does not look."""
        require_intact_checkpoint(trainer.ckpt_path)
        states, plain = checkpoint.get("callbacks", {}), type(self).__qualname__
        if plain in states and len(self._together(trainer)) == 1:  # it had that name whatever the granularity
            states.setdefault(self.state_key, states[plain])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record the model's structure, whatever module holds it."""
        checkpoint.setdefault(STRUCTURE_KEY, structure_of(trainers.model_in(pl_module, self.model)))

    def state_dict(self) -> dict[str, Any]:
        """The plan so far, the prices that it was made by and the process's random state, in plain types."""
        return {**self.course.state(), "random_state": random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the plan of a checkpoint; its model's structure comes ahead of its weights."""
        if not self._is_of_plan or state_dict["plan"] is None:
            return
        self.course.go_on(state_dict)
        self._random_state = state_dict["random_state"]

    def _drop(self, trainer: L.Trainer, epoch: int, quota: Quota) -> None:
        model, processes = self.course.pruner.model, processes_of_trainer(trainer)

        def scored_on(bar: SearchBar) -> WhatIf:
            return measure(trainer, model, validation_batches(trainer, self.num_batches), self.loss, progress=bar)

        def fitted_on(bar: SearchBar) -> WhatIf:
            loaders = tree_leaves(trainer.train_dataloader)
            batches = training_batches(loaders, epoch, processes, partial(inputs_of, trainer))
            return measure(trainer, model, batches, "tokens", progress=bar)

        def removed(step: PruneStep) -> None:
            follow_removal(trainer, step.removed.sublayers, self.model)
            log_removal(trainer, self.whole_plan(trainer), self._costs)

        shown, optimizers = self.progress and trainer.is_global_zero, trainer.optimizers
        with self._together(trainer)[0].mending.noting():
            self.course.drop(epoch, quota, scored_on, fitted_on, optimizers=optimizers, on_removal=removed, shown=shown)
        trainers.renew_ddp(trainer)
