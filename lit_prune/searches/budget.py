"""How much is to go: a share of what the model costs, reached once and never missed, and what that may do to it.

Works on numbers in the budget's own unit; `lit_prune.costs` says where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from lit_prune.errors import BudgetError
from lit_prune.plan import Candidate

NOUNS = {"params": "parameters", "flops": "FLOPs", "kv_cache": "KV cache", "latency": "latency"}
ROUNDING = 1e-12
"""Relative. Without it, 7 of 100 equal sublayers would be 8: 0.07 * 100 is a little more than 7."""


@dataclass(frozen=True)
class Quota:
    """When a series of removals is over: one of a whole budget, or of one epoch.

    Args:
        until: What is saved when it is over, counted from the dense model and in the budget's unit.
        num_steps: The most removals; None sets no limit.
        num_before: Removals before the series.
    """

    until: float
    num_steps: int | None = None
    num_before: int = 0

    def allows(self, reached: float, num_removals: int) -> bool:
        """Whether one more removal is wanted, when so many in all have saved so much."""
        return reached < self.until and (self.num_steps is None or num_removals - self.num_before < self.num_steps)

    def goal(self, reached: float, num_removals: int) -> tuple[float, float]:
        """What a progress bar shows as to be reached and as reached, in removals where these are limited."""
        return (self.until, reached) if self.num_steps is None else (self.num_steps, num_removals - self.num_before)


@dataclass(frozen=True)
class Budget:
    """A share of the model's whole cost, a ceiling on the rise of perplexity, or both: whichever comes first.

    Args:
        amount: The share to remove, above 0 and below 1; None removes all that keeps under the ceiling.
        total: What the model costs before the first removal, embeddings and head included.
        last: The removal that reaches the target is the one with the `least_overshoot` (the lowest score among
            equals), or simply the one with the `lowest_score`.
        of: The unit, for messages and for the plan: `params`, `flops`, `kv_cache` or `latency`.
        max_rise: The most by which perplexity may rise, relative to that before the first removal.

    Raises:
        BudgetError: `amount` is outside (0, 1), `max_rise` is negative, neither is given, or `last` is unknown.

    Example:
        >>> Budget(0.25, 1000).target
        250
        >>> Budget(None, 1000, max_rise=0.05).allows(nll=2.04, dense_nll=2.0)
        True
    """

    amount: float | None
    total: float
    last: Literal["least_overshoot", "lowest_score"] = "least_overshoot"
    of: str = "params"
    max_rise: float | None = None

    def __post_init__(self) -> None:
        require_limits(self.amount, self.max_rise)
        if self.last not in ("least_overshoot", "lowest_score"):
            raise BudgetError(f"last must be least_overshoot or lowest_score; found {self.last!r}")

    @property
    def target(self) -> float:
        """What is to be saved, in the unit: whole where the total is, infinite where there is no amount."""
        return math.inf if self.amount is None else share_of(self.amount, self.total)

    def remaining(self, reached: float) -> float:
        """What is still to be saved, 0 when the target is met."""
        return max(0, self.target - reached)

    def require_reachable(self, available: float, what: str, reached: float = 0) -> None:
        """Refuse an amount that all candidates together cannot give, before anything is measured.

        Raises:
            BudgetError: They are too few; the message says how much they are.
        """
        if self.amount is not None and available < self.remaining(reached):
            most = (available + reached) / self.total
            raise BudgetError(
                f"{what} cannot give {self.amount:.1%} of the {NOUNS.get(self.of, self.of)}: all that may go is "
                f"{most:.1%}. Ask for less, protect less, or allow other kinds"
            )

    def allows(self, nll: float, dense_nll: float) -> bool:
        """Whether perplexity keeps under the ceiling, by mean token losses (nats) after a removal and before any."""
        return self.max_rise is None or nll - dense_nll <= math.log1p(self.max_rise)

    def choose(
        self, importance: Mapping[Candidate, float], sizes: Mapping[Candidate, float], reached: float
    ) -> Candidate:
        """The candidate to remove now: the lowest score, except where the target is reached with less overshoot.

        What each candidate saves, and what is reached so far, are in the unit.

        Example:
            >>> a, b = Candidate.parse("mlp.0"), Candidate.parse("attention.1")
            >>> Budget(0.1, 1000).choose({a: 0.1, b: 0.2}, {a: 300, b: 100}, 0).name
            'attention.1'
        """
        best = min(importance, key=lambda candidate: (importance[candidate], candidate))
        finishing = [candidate for candidate in importance if sizes[candidate] >= self.remaining(reached)]
        if self.last == "lowest_score" or best not in finishing:
            return best
        return min(finishing, key=lambda candidate: (sizes[candidate], importance[candidate], candidate))


def share_of(share: float, total: float) -> float:
    """A share of a cost, whole where the cost is: what must go at least to make up that share.

    Example:
        >>> share_of(0.07, 100)
        7
    """
    part = share * total * (1 - ROUNDING)
    return math.ceil(part) if isinstance(total, int) else part


def require_limits(amount: float | None, max_rise: float | None) -> None:
    """Refuse limits that cannot be.

    Raises:
        BudgetError: A number cannot be; the message names it.
    """
    if amount is None and max_rise is None:
        raise BudgetError("say how much is to go: amount=0.2, or how much perplexity may rise: max_rise=0.05")
    if amount is not None:
        require_share(amount)
    if max_rise is not None and not (isinstance(max_rise, Real) and 0 <= max_rise < math.inf):
        raise BudgetError(f"max_rise is the share by which perplexity may rise, such as 0.05; found {max_rise!r}")


def require_share(amount: float) -> None:
    """Refuse a share outside (0, 1).

    Raises:
        BudgetError: A number cannot be; the message names it.
    """
    if not (isinstance(amount, Real) and 0 < amount < 1):
        raise BudgetError(f"amount is the share of the whole model to remove, above 0 and below 1; found {amount!r}")


def outcome_in_words(record: Mapping[str, Any]) -> Iterator[str]:
    """What a plan's `budget` says was reached of what was asked for, beside parameters; nothing for older plans.

    Example:
        >>> record = {"of": "flops", "amount": 0.2, "total": 5000, "reached": 1250, "unit": "FLOP of a token after 9"}
        >>> list(outcome_in_words(record))
        ['FLOP of a token after 9: 5,000 -> 3,750 (25.0% less, 20.0% asked for)']
    """
    if record.get("of", "params") != "params" and "reached" in record:
        total, reached, amount = record["total"], record["reached"], record["amount"]
        digits = "," if isinstance(total, int) else ",.4g"
        asked = "" if amount is None else f", {amount:.1%} asked for"
        yield f"{record['unit']}: {total:{digits}} -> {total - reached:{digits}} ({reached / total:.1%} less{asked})"
    if record.get("rise") is not None:
        yield f"perplexity on the calibration tokens: {record['rise']:+.1%} (at most {record['max_rise']:+.1%})"
