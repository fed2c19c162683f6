"""What a training removes, epoch by epoch, and how far it is: the same for every trainer that a callback adapts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.optim import Optimizer

from lit_prune.costs import Prices
from lit_prune.errors import LitPruneError
from lit_prune.measure import WhatIf
from lit_prune.plan import PrunePlan, PruneStep, Recipe
from lit_prune.pruning import Pruner, SearchBar, describe_run, expected_of, progress_bar
from lit_prune.searches import Budget, Goal, Quota, Schedule

from .allowance import Allowance
from .planned import along

BY_DEFAULT = {"name": "refit", "required": False}


class Course:
    """The removals of one training, of which the callback says when an epoch begins and on what to score.

    Args:
        goal: How much is to go.
        schedule: How it is spread over epochs.
        num_epochs: The number of epochs to spread over, where the trainer does not know it.
        recipe: What decides which sublayers go.
        plan: The path of a plan that stands for the recipe, None where sublayers are scored.
    """

    def __init__(
        self, goal: Goal, schedule: Schedule, num_epochs: int | None, recipe: Recipe, plan: str | None
    ) -> None:
        self._planned, self.recipe, goal = along(plan, recipe, goal)
        self.allowance = Allowance(goal, schedule, num_epochs)
        compensate = self.recipe.compensate
        if compensate == "bias" or (isinstance(compensate, Mapping) and compensate.get("name") == "bias"):
            raise LitPruneError("compensate='bias' makes parameters that no checkpoint restores; use scale or linear")
        self.found: Pruner | None = None
        self.num_earlier = 0  # removals of earlier fits of the same model
        self.last_epoch = -1  # whose drop is done
        self.is_full = False  # nothing more fits under the ceiling

    @property
    def pruner(self) -> Pruner:
        """The pruner of the model that is trained."""
        if self.found is None:
            raise LitPruneError("the callback was not set up; pass it to a trainer and train")
        return self.found

    @property
    def mends_by_default(self) -> bool:
        """Whether nobody has said what makes up for removals."""
        return self.recipe.compensate == BY_DEFAULT

    def begin(self, model: nn.Module, name: str) -> None:
        """Take up a model, whose plan goes on where an earlier fit of the same model has left it."""
        if self.found is None or self.found.model is not model:
            self.found = Pruner(model, self.recipe, model_name=name)
        if self._planned:
            self._planned.model.require_same(self.found.plan.model)
        self.num_earlier, self.last_epoch = len(self.found.plan.steps), -1

    def describe(self, calibration: Mapping[str, Any]) -> None:
        """Write into the plan what was asked for, and the origin of the tokens that score."""
        schedule = self.allowance.schedule.per_epoch
        self.pruner.plan = describe_run(self.pruner.plan, self.budget, calibration, schedule=schedule)

    @property
    def budget(self) -> Budget:
        """The budget of the whole run."""
        return self.allowance.budget(self.pruner)

    def due(self, epoch: int, known: int | None) -> Quota | None:
        """What is to go at the start of an epoch of the known number of them, None where nothing is."""
        if not self.allowance.schedule.is_due(epoch):
            return None
        quota = self.allowance.quota(epoch, known, self.pruner, self.num_earlier)
        return quota if quota.allows(*self.pruner.so_far) else None

    def drop(
        self,
        epoch: int,
        quota: Quota,
        scored_on: Callable[[SearchBar], WhatIf],
        fitted_on: Callable[[SearchBar], WhatIf],
        *,
        optimizers: Iterable[Optimizer],
        on_removal: Callable[[PruneStep], object],
        shown: bool,
    ) -> None:
        """Score and remove until the quota is met, and make up for it; random states are left as they are.

        Args:
            epoch: The epoch at whose start this happens.
            quota: What `due` said.
            scored_on: Makes the measure over the batches that score.
            fitted_on: Makes the measure over the batches that a compensation is fitted on.
            optimizers: Optimizers of the model's parameters, which forget what is removed.
            on_removal: Called after every removal.
            shown: Whether a progress bar is drawn.

        Raises:
            MeasureError: Losses are NaN or infinite; nothing is removed then.
        """
        pruner = self.pruner
        goal, reached = quota.goal(*pruner.so_far)
        with isolate_rng(), progress_bar(f"epoch {epoch}: scoring", goal=goal, reached=reached, shown=shown) as bar:
            what_if = scored_on(bar)
            bar.foresee(expected_of(pruner, quota, what_if), len(what_if.batches))
            for step in pruner.steps(what_if, self.budget, quota, optimizers=optimizers, epoch=epoch):
                bar.removed(quota.goal(*pruner.so_far)[1])
                on_removal(step)
        with isolate_rng(), progress_bar(f"epoch {epoch}: compensating", shown=shown, in_one=True) as bar:
            pruner.mend(lambda: fitted_on(bar))
        self.is_full = quota.allows(*pruner.so_far) and bool(pruner.candidates())

    def end(self) -> str | None:
        """Write into the plan what the training came to; returns what to tell the user, None where all went well."""
        pruner = self.pruner
        pruner.record_outcome(self.budget, left="max_rise" if self.is_full else "end of training")
        return self.allowance.shortfall(pruner, is_full=self.is_full)

    def state(self) -> dict[str, Any]:
        """The plan so far, the prices that it was made by and where in the training it is, in plain types."""
        plan, prices = (self.found.plan.to_dict(), self.found.prices.to_dict()) if self.found else (None, None)
        return {"plan": plan, "prices": prices, "num_earlier": self.num_earlier, "last_epoch": self.last_epoch}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, with a model of the same structure.

        Raises:
            PlanError: The plan is damaged, or of another model.
        """
        plan = PrunePlan.from_dict(state["plan"])
        self.pruner.plan.model.require_same(plan.model)
        self.pruner.plan = plan
        if state.get("prices") is not None:
            self.pruner.prices = Prices.from_dict(state["prices"])
        self.num_earlier = state["num_earlier"]
        self.last_epoch = state.get("last_epoch", -1)  # older ones lack it
