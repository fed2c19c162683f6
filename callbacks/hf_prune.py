"""`HfPruneCallback`: drops sublayers between epochs of transformers' Trainer, and of TRL's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from transformers import TrainerCallback

from lit_prune.anatomy import is_adapted
from lit_prune.data import fingerprint
from lit_prune.errors import DataError, LitPruneError
from lit_prune.loading.processes import Processes, processes_of_accelerator
from lit_prune.measure import WhatIf, read_batches, shares_of
from lit_prune.plan import PLAN_FILE, PrunePlan, PruneStep, Recipe
from lit_prune.pruning import SearchBar
from lit_prune.searches import Goal, PerEpoch, Schedule
from lit_prune.surgery import require_forgetful, require_understood
from lit_prune.training import STRUCTURE_KEY, restore_structure

from . import hf_trainers
from .course import BY_DEFAULT, Course
from .story import final_figures, removal_figures
from .training_text import training_batches, unnumbered
from .validation import ValidationBatch


class HfPruneCallback(TrainerCallback):
    """Drops the least important sublayers at the start of epochs of a Hugging Face Trainer, TRL's included.

    What goes when is as `SublayerPruneCallback` does it in Lightning's Trainer. Candidates are scored on the Trainer's
    evaluation set. Every `checkpoint-N` is a model that transformers reads behind `import lit_prune`, with the plan in
    it; `trainer.train(resume_from_checkpoint=...)` goes on with the same drops. A model that peft has wrapped loses the
    adapters of what goes. The log has a row for every removal, and at the end the plan is in the Trainer's output
    folder. Processes of DDP share the scoring, and drop the same sublayers.

    Args:
        amount: The share of the whole model's cost to remove in the run, above 0 and below 1. With a schedule of its
            own it is the most that goes, and may be left out; with a plan it is all of that unless less is asked for.
        of: The cost that the amount is a share of: `params`, `flops`, `kv_cache` or `latency`; see `lit_prune.prune`.
        max_rise: The most by which perplexity may rise above that before the first removal: 0.05 for 5 %.
        schedule: How much goes in an epoch that drops: a number of removals (an int), a share of the model's cost (a
            float), or a callable of the epoch that returns either. None spreads `amount` evenly.
        start_epoch: The first epoch that drops, 0-based.
        every_n_epochs: The number of epochs from one drop to the next.
        num_epochs: The number of epochs to spread over, where the training data is a stream.
        plan: A plan that a search found before, as a file or the folder that holds it: its removals are dropped in
            their order, and nothing is scored. It stands for `scorer`, `search`, `granularity` and `protect`.
        scorer: A scorer's name, a mapping such as `{name: nri, baseline: original}`, or an import path.
        search: `progressive`, `lazy`, `one_shot`, `portfolio`, or an import path.
        granularity: What goes at a time: a `sublayer` of either kind, `attention` only, `mlp` only, a whole `block`.
        protect: What must stay, such as `attention.0`, `mlp.3`, `block.2`.
        compensate: What makes up for removals in weights that stay: `none`, `refit`, `scale` or `linear`; see `Recipe`.
            None is `refit` on training examples, unless the model has adapters, or the examples no numbers.
        batches: What to score on instead of the Trainer's evaluation set: dicts with `input_ids` [batch, seq], perhaps
            `labels` and `attention_mask`.
        num_batches: The most batches of each evaluation set to score on; None takes all.
        progress: Whether to show a progress bar while scoring.

    Raises:
        BudgetError: The amount or schedule cannot be, or cannot be reached (before the first step).
        DataError: There are no batches to score on, or none that can be scored (before the first step).
        LitPruneError: The Trainer uses what removal is not known to be right with (before any work).
        MeasureError: Losses are NaN or infinite while scoring; nothing is removed then.

    Example::

        pruning = HfPruneCallback(amount=0.2)
        trainer = Trainer(model, args, train_dataset=train, eval_dataset=val, callbacks=[pruning])
        trainer.train()
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
        protect: Sequence[str] = (),
        compensate: str | dict[str, Any] | None = None,
        batches: Iterable[Mapping[str, Any]] | None = None,
        num_batches: int | None = None,
        progress: bool = True,
    ) -> None:
        recipe = Recipe(scorer, search, granularity, protect, BY_DEFAULT if compensate is None else compensate)
        rhythm = Schedule(schedule, start_epoch, every_n_epochs)
        self.course = Course(Goal(amount, of, max_rise), rhythm, num_epochs, recipe, plan)
        self.batches = None if batches is None else list(batches)
        self.num_batches, self.progress = num_batches, progress
        self._trainer: Any = None
        self._loader: Any = None  # of the training examples, for what is fitted on them
        self._is_begun = False  # by a checkpoint
        self._epoch = 0  # the next to begin
        hf_trainers.meet_trainers(HfPruneCallback)

    @property
    def plan(self) -> PrunePlan | None:
        """What was removed so far and why; None before training."""
        return self.course.found.plan if self.course.found else None

    @contextmanager
    def training(self, trainer: Any) -> Iterator[None]:
        """Go along with a Trainer while it trains, in a `with` block, which its `train` opens.

        Raises:
            LitPruneError: It trains in a way that is not supported.
        """
        hf_trainers.require_supported(trainer)
        self._trainer, self._is_begun = trainer, False
        try:
            with hf_trainers.followed(trainer, self._restore):
                yield
        finally:
            self._trainer = self._loader = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse what cannot work before the first step is made."""
        trainer, course = self._met(), self.course
        model, epochs = hf_trainers.model_of(trainer), hf_trainers.num_epochs(state)
        if not self._is_begun:
            course.begin(model, "")
        self._is_begun, self._epoch = False, int(state.epoch)
        course.allowance.require_possible(epochs, course.pruner)
        hf_trainers.require_latest_kept(args, course.allowance.last_drop(epochs))
        require_forgetful(trainer.optimizer)
        self._loader = hf_trainers.whole_loader(trainer, kwargs["train_dataloader"], trainer.args.train_batch_size)
        with isolate_rng():
            self._settle_compensation(model)
            require_understood(model)
            what_if = self._scored_on()
            autocast = trainer.accelerator.autocast
            course.allowance.price(course.pruner, what_if.num_positions, self._processes, autocast)
        source = "the Trainer's evaluation set" if self.batches is None else "batches that were given"
        course.describe({"source": source, **fingerprint(what_if.batches)})

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score and drop what this epoch is due, unless the training was resumed within it."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        quota = self.course.due(epoch, hf_trainers.num_epochs(state))
        if quota is not None and epoch > self.course.last_epoch:
            self.course.drop(
                epoch,
                quota,
                self._scored_on,
                partial(self._fitted_on, epoch),
                optimizers=[self._met().optimizer],
                on_removal=self._tell,
                shown=self.progress and state.is_world_process_zero,
            )
            hf_trainers.renew_ddp(self._met())
        self.course.last_epoch = epoch

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the plan into the checkpoint."""
        trainer = self._met()
        run = Path(trainer._get_output_dir(trial=getattr(trainer, "_trial", None)))
        folder = run / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():
            hf_trainers.write_checkpoint(folder, hf_trainers.model_of(trainer), self.course.state())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the plan, say what was reached."""
        if (trouble := self.course.end()) is not None:
            warnings.warn(trouble, stacklevel=2)
        plan = self.course.pruner.plan
        if args.should_save:
            plan.save(Path(args.output_dir) / PLAN_FILE)
        self._met().log({**final_figures(plan), "prune/removed": ", ".join(map(str, plan.removed))})

    def _met(self) -> Any:
        if self._trainer is None:
            raise LitPruneError(
                "HfPruneCallback is for the `train` of transformers' Trainer, which was not called here"
            )
        return self._trainer

    def _restore(self, folder: Path) -> None:
        """Bring the model to the structure of a checkpoint, and go on with its plan."""
        trainer = self._met()
        model = hf_trainers.model_of(trainer)
        self.course.begin(model, "")
        state, lost = hf_trainers.read_checkpoint(folder), self.course.pruner.plan.removed
        if not set(map(str, lost)) <= set(state["structure"]["removed"] if state else ()):
            raise LitPruneError(
                f"{folder} has sublayers that the model has lost since; go on from it with a fresh model and Trainer"
            )
        if state is not None:
            held = [] if trainer.optimizer is None else [trainer.optimizer]
            restore_structure(model, {STRUCTURE_KEY: state["structure"]}, held)
            self.course.go_on(state)
        self._is_begun = True

    def _settle_compensation(self, model: Any) -> None:
        pruner, by_default = self.course.pruner, self.course.mends_by_default
        if by_default and is_adapted(model):
            pruner.leave_uncompensated("the model has adapters of yours, which are for the weights as they are")
        if pruner.mends and (why := self._unfit()) is not None:
            if not by_default:
                raise DataError(f"{why}, or another compensate")
            pruner.leave_uncompensated(why)

    def _unfit(self) -> str | None:
        """Why nothing can be fitted on training examples, and what to give; None where it can."""
        if (why := unnumbered([self._loader])) is None:
            try:
                hf_trainers.require_tokens([self._loader.collate_fn([self._loader.dataset[0]])])
            except DataError as error:
                return f"refit reads training examples, where {error}: give such"
        return why

    def _measure(self, batches: Sequence[Any], bar: SearchBar | None = None) -> WhatIf:
        """The measure over this process's batches."""
        trainer = self._met()
        scored, autocast = [batch.scored for batch in batches], trainer.accelerator.autocast
        model, processes = hf_trainers.model_of(trainer), self._processes
        return WhatIf(model, scored, processes=processes, autocast=autocast, progress=bar)

    def _scored_on(self, bar: SearchBar | None = None) -> WhatIf:
        whole = hf_trainers.scored_batches(self._met(), self.batches, self.num_batches)
        read = read_batches(hf_trainers.model_of(self._met()), [batch.scored for batch in whole])
        return self._measure([ValidationBatch(own, 0, 0) for own in shares_of(read, self._processes)], bar)

    def _fitted_on(self, epoch: int, bar: SearchBar) -> WhatIf:
        return self._measure(training_batches([self._loader], epoch, self._processes), bar)

    @property
    def _processes(self) -> Processes:
        return processes_of_accelerator(self._met().accelerator)

    def _tell(self, step: PruneStep) -> None:
        self._met().log({**removal_figures(self.course.pruner.plan), "prune/removed": step.removed.name})
