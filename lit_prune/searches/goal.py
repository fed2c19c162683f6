"""How much is to go, as it is asked for in Python, on the command line and of the callback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_prune.errors import LitPruneError
from lit_prune.searches.budget import Budget, require_limits

UNITS = ("params", "flops", "kv_cache", "latency")
LATENCY_OPTIONS = ("phase", "batch", "length", "repeats")


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

    def budget(self, total: float, of: str) -> Budget:
        """The budget of a model that costs `total` in the unit `of`.

        Raises:
            BudgetError: Neither amount nor ceiling is given.
        """
        return Budget(self.amount, total, of=of, max_rise=self.max_rise)


def unit_options(of: str | Mapping[str, Any]) -> dict[str, Any]:
    """The unit of an amount and its options, as a mapping with a `name`.

    Raises:
        LitPruneError: The unit is unknown, or does not take an option.

    Example:
        >>> unit_options("flops")
        {'name': 'flops'}
    """
    options = {"name": of} if isinstance(of, str) else dict(of)
    name = options.get("name")
    if name not in UNITS:
        raise LitPruneError(f"`of` must be one of {', '.join(UNITS)}, or a mapping with such a name; found {of!r}")
    known = LATENCY_OPTIONS if name == "latency" else ()
    if unknown := sorted({*options} - {"name", *known}):
        raise LitPruneError(
            f"an amount of {name} does not take {', '.join(unknown)}; it takes {', '.join(known) or 'no options'}"
        )
    if wrong := [option for option in LATENCY_OPTIONS[1:] if type(options.get(option, 1)) is not int]:
        raise LitPruneError(f"{', '.join(wrong)} of a latency must be whole numbers; found {options}")
    return options
