"""How much goes at the start of which epoch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

from lit_prune.errors import BudgetError
from lit_prune.searches.budget import Quota, share_of

PerEpoch = int | float | Callable[[int], int | float]
"""How much goes in an epoch: a number of removals, a share of the model's cost, or a function of the epoch."""


@dataclass(frozen=True)
class Schedule:
    """Spreads removals over epochs.

    Args:
        per_epoch: Removals per epoch that drops (an int), share of the model's whole cost (a float below 1), or a
            callable of the epoch that returns either; None spreads the whole amount evenly.
        start_epoch: First epoch that drops, 0-based.
        every_n_epochs: Epochs from one drop to the next.

    Raises:
        BudgetError: A value is out of range.

    Example:
        >>> Schedule().quota(0, num_epochs=4, target=1000, total=5000, reached=0).until
        250
        >>> Schedule(per_epoch=2).quota(3, num_epochs=4, target=1000, total=5000, reached=0).num_steps
        2
    """

    per_epoch: PerEpoch | None = None
    start_epoch: int = 0
    every_n_epochs: int = 1

    def __post_init__(self) -> None:
        whole = isinstance(self.start_epoch, int) and isinstance(self.every_n_epochs, int)
        if not (whole and self.start_epoch >= 0 and self.every_n_epochs >= 1):
            raise BudgetError(
                "start_epoch is 0 or more and every_n_epochs 1 or more, both whole; "
                f"found {self.start_epoch!r} and {self.every_n_epochs!r}"
            )
        if callable(self.per_epoch):
            _require_epoch(self.per_epoch)
        elif self.per_epoch is not None:
            _quota(self.per_epoch)

    def is_due(self, epoch: int) -> bool:
        """Whether this epoch drops."""
        return epoch >= self.start_epoch and (epoch - self.start_epoch) % self.every_n_epochs == 0

    def at(self, epoch: int) -> int | float | None:
        """What `per_epoch` says of an epoch."""
        return self.per_epoch(epoch) if callable(self.per_epoch) else self.per_epoch

    def num_drops(self, num_epochs: int) -> int:
        """How many of the first `num_epochs` epochs drop."""
        return sum(self.is_due(epoch) for epoch in range(num_epochs))

    def quota(self, epoch: int, *, num_epochs: int | None, target: float, total: float, reached: float) -> Quota:
        """What goes at the start of an epoch (0-based) that drops; all amounts are in the budget's unit.

        The number of epochs is needed where an amount is spread evenly. The target is that of the whole run, infinite
        where only a ceiling limits it; `total` is what the dense model costs, `reached` what earlier epochs saved.

        Raises:
            BudgetError: A callable returned something else than a count or a share.
        """
        if self.per_epoch is None:
            if math.isinf(target):
                return Quota(target)
            assert num_epochs is not None
            done, drops = self.num_drops(epoch + 1), max(1, self.num_drops(num_epochs))
            return Quota(target if done >= drops else share_of(done / drops, target))
        value = _quota(self.at(epoch))
        if isinstance(value, int):
            return Quota(target, value)
        return Quota(min(target, reached + share_of(value, total)))


def _require_epoch(schedule: Callable[..., object]) -> None:
    """Refuse, before the first epoch, what cannot be called with an epoch."""
    try:
        inspect.signature(schedule).bind(0)
    except TypeError as error:
        raise BudgetError(f"a schedule that is called takes the epoch; this one does not: {error}") from error
    except ValueError:
        pass  # of some that are written in C


def _quota(value: object) -> int | float:
    """The same value, if it can be a number of removals or a share."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, float) and 0 <= value < 1:
        return value
    raise BudgetError(f"a schedule is removals per epoch (an int) or a share of the whole model; found {value!r}")
