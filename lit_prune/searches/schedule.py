"""How much goes at the start of which epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lit_prune.errors import BudgetError

PerEpoch = int | float | Callable[[int], int | float]


@dataclass(frozen=True)
class Quota:
    """What may still go in one epoch.

    Args:
        num_parameters: Removed parameters, counted from the dense model, at which the epoch stops removing.
        num_steps: The most removals.
    """

    num_parameters: int
    num_steps: int | None = None

    def allows(self, num_removed: int, num_steps: int) -> bool:
        """Whether one more removal is wanted after `num_steps` in this epoch."""
        return num_removed < self.num_parameters and (self.num_steps is None or num_steps < self.num_steps)


@dataclass(frozen=True)
class Schedule:
    """Spreads removals over epochs.

    Args:
        per_epoch: Removals per epoch that drops (an int), share of all parameters (a float below 1), or a callable of
            the epoch that returns either; None spreads the whole amount evenly.
        start_epoch: First epoch that drops, 0-based.
        every_n_epochs: Epochs from one drop to the next.

    Raises:
        BudgetError: A value is out of range.

    Example:
        >>> Schedule().quota(0, num_epochs=4, num_target=1000, num_total=5000, num_removed=0).num_parameters
        250
        >>> Schedule(per_epoch=2).quota(3, num_epochs=4, num_target=1000, num_total=5000, num_removed=0).num_steps
        2
    """

    per_epoch: PerEpoch | None = None
    start_epoch: int = 0
    every_n_epochs: int = 1

    def __post_init__(self) -> None:
        if self.start_epoch < 0 or self.every_n_epochs < 1:
            raise BudgetError(
                "start_epoch is 0 or more and every_n_epochs 1 or more; "
                f"found {self.start_epoch} and {self.every_n_epochs}"
            )
        if self.per_epoch is not None and not callable(self.per_epoch):
            _require_quota(self.per_epoch)

    def is_due(self, epoch: int) -> bool:
        """Whether this epoch drops."""
        return epoch >= self.start_epoch and (epoch - self.start_epoch) % self.every_n_epochs == 0

    def num_drops(self, num_epochs: int) -> int:
        """How many of the first `num_epochs` epochs drop."""
        return sum(self.is_due(epoch) for epoch in range(num_epochs))

    def quota(self, epoch: int, *, num_epochs: int | None, num_target: int, num_total: int, num_removed: int) -> Quota:
        """What goes at the start of an epoch that drops.

        Args:
            epoch: The epoch, 0-based.
            num_epochs: Epochs of the run; needed where the amount is spread evenly.
            num_target: Parameters to remove in the whole run.
            num_total: Parameters of the dense model.
            num_removed: Parameters removed before this epoch.

        Raises:
            BudgetError: A callable returned something else than a count or a share.
        """
        if self.per_epoch is None:
            assert num_epochs is not None
            done, drops = self.num_drops(epoch + 1), max(1, self.num_drops(num_epochs))
            return Quota(math.ceil(num_target * min(1.0, done / drops)))
        value = self.per_epoch(epoch) if callable(self.per_epoch) else self.per_epoch
        _require_quota(value)
        if isinstance(value, int):
            return Quota(num_target, value)
        return Quota(min(num_target, num_removed + math.ceil(value * num_total)))


def _require_quota(value: object) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    is_share = isinstance(value, float) and 0 <= value < 1
    if not (is_count or is_share):
        raise BudgetError(f"a schedule is removals per epoch (an int) or a share of all parameters; found {value!r}")
