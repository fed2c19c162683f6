"""How much may go in a training run, and when: the budget in its own unit, spread over epochs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from lit_prune.costs import Prices, price
from lit_prune.errors import BudgetError
from lit_prune.healing import adapters_off
from lit_prune.loading.processes import Processes
from lit_prune.pruning import Pruner
from lit_prune.searches import NOUNS, ROUNDING, Budget, Goal, Quota, Schedule, unit_options


@dataclass(frozen=True)
class Allowance:
    """What a callback was asked for; without a number of epochs to spread over, the trainer's is taken (`known`).

    That is None where the trainer does not know it.
    """

    goal: Goal
    schedule: Schedule
    num_epochs: int | None

    def __post_init__(self) -> None:
        if not self.goal.is_stated and self.schedule.per_epoch is None:
            raise BudgetError("say how much is to go: amount=0.2, max_rise=0.05, or a schedule")

    def budget(self, pruner: Pruner) -> Budget:
        """The budget of the whole run; with a schedule alone, that of all that may go."""
        prices = pruner.prices
        if self.goal.is_stated:
            return self.goal.budget(prices.total, prices.of)
        everything = min((pruner.available + pruner.reached) / prices.total, 1 - ROUNDING)
        return Budget(everything, prices.total, last="lowest_score", of=prices.of)

    def quota(self, epoch: int, known: int | None, pruner: Pruner, num_earlier: int) -> Quota:
        """What may go in an epoch, within which a run may have been resumed.

        The first `num_earlier` removals are those of earlier fits, whose epochs have the same numbers.
        """
        done = [step for step in pruner.plan.steps[num_earlier:] if step.epoch == epoch]
        quota = self.schedule.quota(
            epoch,
            num_epochs=self.num_epochs or known,
            target=self.budget(pruner).target,
            total=pruner.prices.total,
            reached=pruner.reached - pruner.saved(done),
        )
        return replace(quota, num_before=len(pruner.plan.steps) - len(done))

    def require_possible(self, known: int | None, pruner: Pruner) -> None:
        """Refuse, before any work, what the candidates or the epochs cannot give."""
        if self.goal.unit == "params":  # others are priced when the model is where it will be trained
            pruner.require_reachable(self.budget(pruner))
        epochs = self.num_epochs or known
        if epochs is None and self.goal.amount is not None and self.schedule.per_epoch is None:
            raise BudgetError(
                "the trainer does not know its number of epochs (max_steps, max_epochs=-1, a stream), so the amount "
                "cannot be spread over them; pass num_epochs=N or a schedule"
            )
        if epochs is not None and not self.schedule.num_drops(epochs):
            raise BudgetError(f"start_epoch={self.schedule.start_epoch} is behind the last of {epochs} epochs")

    def last_drop(self, known: int | None) -> int | None:
        """The last epoch that may drop, 0-based; None where nobody knows the number of epochs."""
        if (epochs := self.num_epochs or known) is None:
            return None
        last, gone, most = 0, 0.0, 1.0 if self.goal.amount is None else self.goal.amount
        for epoch in filter(self.schedule.is_due, range(epochs)):
            value = self.schedule.at(epoch)
            if value != 0 and gone < most:
                last, gone = epoch, gone + (value if isinstance(value, float) else 0)
        return last

    def price(
        self,
        pruner: Pruner,
        num_positions: int,
        processes: Processes,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Give the pruner its prices, those of process 0 on all, unless an earlier fit or a checkpoint has given them.

        They are of calibration sequences of `num_positions` tokens, in the precision of the training. Those that cannot
        give the amount are refused.
        """
        given = {"name": pruner.prices.of, **pruner.prices.conditions}
        # Options that are left out are as they were.
        if any(given.get(name) != value for name, value in unit_options(self.goal.of).items()):
            if steps := pruner.plan.steps:
                raise BudgetError(
                    f"{len(steps)} removals were made under an amount of {pruner.prices.of} ({pruner.prices.unit}), "
                    f"and nobody knows what they would have been of {self.goal.of}; go on with the same `of`, or start "
                    "from a fresh model"
                )

            def measured() -> Prices:
                with adapters_off(pruner.model), autocast():
                    return price(pruner.model, self.goal.of, num_positions=num_positions)

            pruner.prices = processes.first(measured)
        pruner.require_reachable(self.budget(pruner))

    def shortfall(self, pruner: Pruner, *, is_full: bool) -> str | None:
        """What to tell the user at the end, None where all went well; `is_full` if no more fits under the ceiling."""
        budget, reached, amount = self.budget(pruner), pruner.reached, self.goal.amount
        short = self.schedule.per_epoch is None and amount is not None and budget.remaining(reached)
        if pruner.plan.steps and not short:
            return None
        gone = f"{reached / budget.total:.1%} of the {NOUNS[budget.of]} are gone"
        wanted = "" if amount is None else f", {amount:.1%} were asked for"
        if is_full:
            return (
                f"nothing more fits under max_rise={self.goal.max_rise}: {gone}{wanted}. Allow more, or heal for longer"
            )
        return (
            f"training ended before the pruning did: {gone}{wanted}. Train for the epochs that the removal is spread "
            "over, or pass num_epochs or another schedule"
        )
