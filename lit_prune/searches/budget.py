"""How much is to go: a share of the parameters, reached once and never missed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lit_prune.errors import BudgetError
from lit_prune.plan import Candidate


@dataclass(frozen=True)
class Budget:
    """A share of all parameters, embeddings and head included.

    Args:
        amount: The share to remove, above 0 and below 1.
        num_parameters: Parameters of the model before the first removal.
        last: The removal that reaches the target is the one with the `least_overshoot` (the lowest score among
            equals), or simply the one with the `lowest_score`.

    Raises:
        BudgetError: `amount` is outside (0, 1), or `last` is unknown.

    Example:
        >>> Budget(0.25, 1000).num_target
        250
    """

    amount: float
    num_parameters: int
    last: Literal["least_overshoot", "lowest_score"] = "least_overshoot"

    def __post_init__(self) -> None:
        require_share(self.amount)
        if self.last not in ("least_overshoot", "lowest_score"):
            raise BudgetError(f"last must be least_overshoot or lowest_score; found {self.last!r}")

    @property
    def num_target(self) -> int:
        """Parameters to remove."""
        return math.ceil(self.amount * self.num_parameters)

    def remaining(self, num_removed: int) -> int:
        """Parameters still to remove, 0 when the target is met."""
        return max(0, self.num_target - num_removed)

    def require_reachable(self, available: int, what: str, num_removed: int = 0) -> None:
        """Refuse an amount that all candidates together cannot give, before anything is measured.

        Raises:
            BudgetError: They are too few; the message says how much they are.
        """
        if available < self.remaining(num_removed):
            most = (available + num_removed) / self.num_parameters
            raise BudgetError(
                f"{what} cannot give {self.amount:.1%} of the parameters: all that may go is {most:.1%}. "
                "Ask for less, protect less, or allow other kinds"
            )

    def choose(
        self, importance: Mapping[Candidate, float], sizes: Mapping[Candidate, int], num_removed: int
    ) -> Candidate:
        """The candidate to remove now: the lowest score, except where the target is reached with less overshoot.

        Args:
            importance: Lower is removed first.
            sizes: Parameters of each candidate.
            num_removed: Parameters removed so far.

        Example:
            >>> a, b = Candidate.parse("mlp.0"), Candidate.parse("attention.1")
            >>> Budget(0.1, 1000).choose({a: 0.1, b: 0.2}, {a: 300, b: 100}, 0).name
            'attention.1'
        """
        best = min(importance, key=lambda each: (importance[each], each))
        finishing = [each for each in importance if sizes[each] >= self.remaining(num_removed)]
        if self.last == "lowest_score" or best not in finishing:
            return best
        return min(finishing, key=lambda each: (sizes[each], importance[each], each))


def require_share(amount: float) -> None:
    """Refuse a share outside (0, 1).

    Raises:
        BudgetError: With what was given.
    """
    if not 0 < amount < 1:
        raise BudgetError(f"amount is the share of all parameters to remove, above 0 and below 1; found {amount}")
