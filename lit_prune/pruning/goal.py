"""How much is to go, as it is asked for in Python, on the command line and of the callback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lit_prune.costs import Prices, unit_options
from lit_prune.plan import PrunePlan
from lit_prune.searches import Budget, require_limits


@dataclass(frozen=True)
class Goal:
    """How much is to go: a share of what the model costs, all that keeps under a ceiling, or both.

    Attributes:
        amount: Share of the whole model's cost to remove, above 0 and below 1; embeddings and head count. Without it
            all goes that keeps under max_rise; the command line takes 0.2 where neither is given.
        of: What that is a share of: params; flops or kv_cache of one token after a calibration sequence; latency,
            measured on this device once for each kind of sublayer, or with options as in '{name: latency, phase:
            decode, batch: 1, length: 512, repeats: 15}' (phase may be prefill; without length it is that of a
            calibration sequence). Sublayers that cost nothing of it stay.
        max_rise: The most by which perplexity on the calibration text may rise, relative to that before the first
            removal, such as 0.05 for 5 percent. What would rise above is left, and the next best taken, until nothing
            fits. With amount, whichever comes first.

    Raises:
        BudgetError: A number cannot be.
        LitPruneError: The unit is unknown, or does not take an option.
    """

    amount: float | None = None
    of: str | Mapping[str, Any] = "params"
    max_rise: float | None = None

    def __post_init__(self) -> None:
        if self.is_stated:
            require_limits(self.amount, self.max_rise)
        unit_options(self.of)

    @property
    def is_stated(self) -> bool:
        """Whether it says how much."""
        return self.amount is not None or self.max_rise is not None

    @property
    def unit(self) -> str:
        """The name of the unit: `params`, `flops`, `kv_cache` or `latency`."""
        return str(unit_options(self.of)["name"])

    def budget(self, prices: Prices) -> Budget:
        """The budget of a model with these prices.

        Raises:
            BudgetError: Neither amount nor ceiling is given.
        """
        return Budget(self.amount, prices.total, of=prices.of, max_rise=self.max_rise)


def describe_run(
    plan: PrunePlan, budget: Budget, calibration: Mapping[str, Any], *, schedule: object = None
) -> PrunePlan:
    """The plan with what was asked for and the tokens that score it."""
    asked = asdict(budget) if schedule is None else {**asdict(budget), "schedule": str(schedule)}
    return replace(plan, budget=asked, calibration=dict(calibration))
