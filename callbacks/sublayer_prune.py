"""`SublayerPruneCallback`: scores sublayers on validation batches and drops them between epochs of any training."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch.multiprocessing.spawn import ProcessRaisedException
from transformers import PreTrainedModel

from lit_prune.costs import Costs, Prices
from lit_prune.data import fingerprint
from lit_prune.errors import DataError, LitPruneError
from lit_prune.healing import Distillation, LoraHealing
from lit_prune.loading.checksums import require_intact_checkpoint
from lit_prune.loading.randomness import random_state, restore_random_state
from lit_prune.loading.trees import EitherCallback
from lit_prune.plan import PrunePlan, Recipe
from lit_prune.pruning import Pruner, describe_run, progress_bar
from lit_prune.searches import Goal, PerEpoch, Quota, Schedule
from lit_prune.surgery import require_forgetful, require_understood
from lit_prune.training import STRUCTURE_KEY, structure_of

from . import requirements, trainers
from .allowance import Allowance
from .followers import Following, follow_removal
from .mending import Mending
from .module_loss import LOSSES, check_loss, measure, require_scorable
from .planned import along
from .saving import Saving
from .story import counted_costs, log_beginning, log_end, log_removal
from .training_text import training_batches, unnumbered
from .validation import validation_batches

BY_DEFAULT = {"name": "refit", "required": False}


class SublayerPruneCallback(EitherCallback):
    """Drops the least important sublayers at the start of epochs, so that every removal is trained on.

    `SublayerPruneCallback(amount=0.2)` spreads the removal evenly over the run: the first drop comes before the first
    epoch's training, and the target is met at the start of the last epoch. Before each removal every candidate is
    scored on the validation batches (NRI by default); a checkpoint holds the model that was validated.

    Works with any LightningModule that holds a Hugging Face causal language model, and any validation loader whose
    batches are dicts with `input_ids`.

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
        scorer: A name in the README's table, a mapping such as `{name: nri, baseline: original}`, or an import path.
        search: `progressive`, `lazy`, `one_shot`, `portfolio` (a whole set, decided before the first drop), or an
            import path.
        granularity: What goes at a time: a `sublayer` of either kind, `attention` only, `mlp` only, a whole `block`.
        protect: What must stay, such as `attention.0`, `mlp.3`, `block.2`.
        compensate: What makes up for removals in weights that stay: `none`, `refit`, `scale` or `linear`; see `Recipe`.
            None is `refit`, after every drop and on training examples, where nothing speaks against it: a form of
            blocks that it is not possible for, examples without numbers, `distill`, averaged weights, a sharded model.
            The plan says so then.
        healing: The settings of LoRA adapters, which are attached at set-up, trained between drops and merged at the
            end: `LoraHealing`, or True for its defaults. False trains the model's own weights.
        distill: With healing, what training steps learn from the model as it was at set-up, instead of from the text:
            `Distillation`, or True for its defaults. There is no second copy of the weights, and what is removed is
            freed at the end.
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
        rhythm, goal = Schedule(schedule, start_epoch, every_n_epochs), Goal(amount, of, max_rise)
        mended = BY_DEFAULT if compensate is None else compensate
        recipe = Recipe(scorer, search, granularity, protect or (), mended)
        self._planned, self.recipe, goal = along(plan, recipe, goal)
        self.allowance = Allowance(goal, rhythm, num_epochs)
        if compensate == "bias" or (isinstance(compensate, dict) and compensate.get("name") == "bias"):
            raise LitPruneError("compensate='bias' makes parameters that no checkpoint restores; use scale or linear")
        if distill and compensate not in (None, "none"):
            raise LitPruneError("distill and compensate do not go together: the weights that teach would change")
        self.mending = Mending(healing, distill)
        if loss not in LOSSES:
            raise LitPruneError(f"loss is one of {' and '.join(LOSSES)}; found {loss!r}")
        self.model, self.loss, self.num_batches = model, loss, num_batches
        self.save_to, self.progress = save_to, progress
        self.saving = Saving()
        self._pruner: Pruner | None = None
        self._stage, self._last_epoch = "", -1  # the epoch whose drop is done
        self._num_earlier = 0  # removals of earlier fits of the same model
        # Whether the model at hand is that of the plan, and whether nothing more fits under the ceiling.
        self._is_of_plan = self._is_full = False
        self._costs: Costs | None = None  # of the model when the fit began, for the loggers
        self._random_state: dict[str, Any] | None = None
        self._following = Following()

    @property
    def plan(self) -> PrunePlan | None:
        """What was removed so far and why; None before set-up."""
        return self._pruner.plan if self._pruner else None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the model, refuse what cannot work, attach adapters before optimizers exist."""
        self._stage = stage
        self._following.end(keep=True)
        self.saving.close()
        model = trainers.model_in(pl_module, self.model)
        if stage == "fit":
            self._prepare(trainer, pl_module, model)
        self._is_of_plan = self._pruner is not None and self._pruner.model is model
        self._following.begin(trainer, pl_module, model, self.model)

    def _prepare(self, trainer: L.Trainer, pl_module: L.LightningModule, model: PreTrainedModel) -> None:
        requirements.require_own_process(trainer)
        by_default = self.recipe.compensate == BY_DEFAULT
        folds = self.mending.lora is not None or (not by_default and self.recipe.compensate != "none")
        requirements.require_supported(trainer, folds=folds)
        self.mending.require_possible(pl_module)
        if self._pruner is None or self._pruner.model is not model:
            self._pruner = Pruner(model, self.recipe, model_name=str(getattr(pl_module, "model_name", "")))
        if self._planned:
            self._planned.model.require_same(self._pruner.plan.model)
        if by_default and (why := requirements.against_refit(trainer, pl_module, model, self.mending)) is not None:
            self._pruner.leave_uncompensated(why)
        requirements.require_scored_in_shards(trainer, self._pruner, self.allowance.goal.unit, self.mending)
        requirements.require_averages_follow(trainer, pl_module, self, self._pruner, self.mending)
        require_scorable(self.loss, self._pruner.scorer)
        self._num_earlier, self._last_epoch = len(self._pruner.plan.steps), -1
        self.allowance.require_possible(trainer, self._pruner)
        requirements.warn_of_monitors(trainer, self.allowance.last_drop(trainer))
        if self.save_to:
            self.mending.require_none_of_others(model)
        self.saving.prepare(trainer, pl_module, model, self.save_to)
        self.mending.attach(pl_module, model)
        # TensorBoard shows the first set that a run logs, and Lightning's own, of the module alone, comes after this.
        log_beginning(trainer, pl_module.hparams_initial, self._pruner, self.allowance, self.mending)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the random state of the checkpoint, ahead of the first draw of a shuffled loader."""
        if self._random_state is not None and trainer.world_size == 1:
            restore_random_state(self._random_state)
        self._random_state = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse unusable validation batches before any work is done."""
        pruner = self._require_pruner()
        self.mending.to(pl_module.device)
        for optimizer in trainer.optimizers:
            require_forgetful(optimizer)
        if pruner.mends and (why := unnumbered(trainer)) is not None:
            if self.recipe.compensate != BY_DEFAULT:
                raise DataError(f"{why}, or another compensate")
            pruner.leave_uncompensated(why)
        with isolate_rng():
            require_understood(pruner.model)
            batches = validation_batches(trainer, self.num_batches)
            what_if = measure(trainer, pruner.model, batches, self.loss)
            check_loss(trainer, pruner.model, batches, self.loss)
            self.allowance.price(trainer, pruner, what_if.num_positions)
            self._costs = counted_costs(trainer, pruner, what_if.num_positions)
        source = {"source": trainers.calibration_source(trainer, self.loss), **fingerprint(what_if.batches)}
        schedule = self.allowance.schedule.per_epoch
        pruner.plan = describe_run(pruner.plan, self.allowance.budget(pruner), source, schedule=schedule)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score and drop what this epoch is due."""
        pruner, epoch = self._require_pruner(), trainer.current_epoch
        if self.allowance.schedule.is_due(epoch):
            quota = self.allowance.quota(trainer, pruner, self._num_earlier)
            if quota.allows(*pruner.so_far):
                self._drop(trainer, quota)
        self._last_epoch = epoch

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Score and drop, where Lightning has gone on at an epoch's start and told nobody that it begins."""
        if self._last_epoch < trainer.current_epoch:
            self.on_train_epoch_start(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Merge the adapters, save the pruned model, say what was reached."""
        pruner = self._require_pruner()
        pruner.record_outcome(self.allowance.budget(pruner), left="max_rise" if self._is_full else "end of training")
        if (trouble := self.allowance.shortfall(pruner, is_full=self._is_full)) is not None:
            rank_zero_warn(trouble)
        log_end(trainer, pruner.plan)
        self.mending.merge()
        self.saving.save(trainer, pruner.model, pruner.plan)

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

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record the model's structure, whatever module holds it."""
        checkpoint.setdefault(STRUCTURE_KEY, structure_of(trainers.model_in(pl_module, self.model)))

    def state_dict(self) -> dict[str, Any]:
        """The plan so far, the prices that it was made by and the process's random state, in plain types."""
        plan = self.plan.to_dict() if self.plan else None
        prices = self._pruner.prices.to_dict() if self._pruner else None
        done = {"num_earlier": self._num_earlier, "last_epoch": self._last_epoch}
        return {"plan": plan, "prices": prices, **done, "random_state": random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the plan of a checkpoint; its model's structure comes ahead of its weights."""
        if self._pruner is None or not self._is_of_plan or state_dict["plan"] is None:
            return
        plan = PrunePlan.from_dict(state_dict["plan"])
        self._pruner.plan.model.require_same(plan.model)
        self._pruner.plan = plan
        if state_dict.get("prices") is not None:
            self._pruner.prices = Prices.from_dict(state_dict["prices"])
        self._num_earlier = state_dict["num_earlier"]
        self._last_epoch = state_dict.get("last_epoch", -1)  # older ones lack it
        self._random_state = state_dict["random_state"]

    def _drop(self, trainer: L.Trainer, quota: Quota) -> None:
        pruner, epoch = self._require_pruner(), trainer.current_epoch
        budget = self.allowance.budget(pruner)
        goal, reached = quota.goal(*pruner.so_far)
        shown = self.progress and trainer.is_global_zero
        with isolate_rng(), progress_bar(f"epoch {epoch}: scoring", goal=goal, reached=reached, shown=shown) as bar:
            batches = validation_batches(trainer, self.num_batches)
            what_if = measure(trainer, pruner.model, batches, self.loss, progress=bar)
            for step in pruner.steps(what_if, budget, quota, optimizers=trainer.optimizers, epoch=epoch):
                follow_removal(trainer, step.removed.sublayers, self.model)
                bar.removed(quota.goal(*pruner.so_far)[1])
                log_removal(trainer, pruner.plan, self._costs)
            pruner.mend(lambda: measure(trainer, pruner.model, training_batches(trainer), "tokens", progress=bar))
            self._is_full = quota.allows(*pruner.so_far) and bool(pruner.candidates())
        trainers.renew_ddp(trainer)

    def _require_pruner(self) -> Pruner:
        if self._pruner is None:
            raise LitPruneError("SublayerPruneCallback was not set up; pass it to a Trainer and call fit")
        return self._pruner
