"""Whether what the file of a plan says can be, and fits together: asked when it is read, before any of it is used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from lit_prune.errors import PlanError
from lit_prune.files import require_kinds
from lit_prune.plan.candidates import MAX_BLOCKS, SublayerId

SHOWN: tuple[tuple[str, Callable[[Mapping[str, Any]], bool], Mapping[str, Any]], ...] = (
    ("compensation", bool, {"name": str}),
    ("healing", bool, {"tokens": int, "ppl_before": float, "ppl_after": float}),
    ("budget", lambda found: found.get("rise") is not None, {"rise": float, "max_rise": float}),
    (
        "budget",
        lambda found: found.get("of", "params") != "params" and "reached" in found,
        {"unit": str, "total": float, "reached": float, "amount": float | None},
    ),
)
"""What reports and cards show of settings, and when."""
OUTCOME = ("reached", "rise", "stopped_by", "num_removals")
"""Of a budget: what the removals came to."""
MOST_FACTOR = 1e6
"""No sublayer makes the stream so many times longer or shorter; the weights behind it would overflow, or vanish."""


def require_settings(plan: Any) -> None:
    """Check the settings that are shown.

    Raises:
        TypeError: One is missing, or of a wrong kind.
    """
    for name, is_shown, kinds in SHOWN:
        if is_shown(data := getattr(plan, name)):
            require_kinds(name, data, kinds)
    if plan.budget.get("total") == 0:
        raise TypeError("nothing can be a share of a total of 0")


def require_possible(plan: Any) -> None:
    """Check that a model could have had, and lost, what the plan says.

    Raises:
        PlanError: With what cannot be.
    """
    model = plan.model
    if not 0 < model.num_blocks <= MAX_BLOCKS:
        raise PlanError(f"the plan is damaged: a model of {model.num_blocks:,} blocks; expected 1 to {MAX_BLOCKS:,}")
    gone = [step.num_parameters for step in plan.steps]
    if model.num_parameters <= 0 or any(each < 0 for each in gone) or sum(gone) > model.num_parameters:
        raise PlanError(f"the plan is damaged: {sum(gone):,} parameters go of {model.num_parameters:,}")
    seen: set[SublayerId] = set()
    for sublayer in plan.removed:
        if sublayer in seen:
            raise PlanError(f"the plan is damaged: it removes {sublayer} twice")
        if sublayer.block >= model.num_blocks:
            raise PlanError(f"the plan is damaged: it removes {sublayer} from a model of {model.num_blocks} blocks")
        seen.add(sublayer)


def require_corrections(plan: Any) -> None:
    """Check what was folded into weights: factors are folded again where the plan is applied.

    Raises:
        PlanError: A correction is of no sublayer that goes, or its factor is none that a stream can have.
    """
    scaled = plan.compensation.get("name") == "scale"
    for step in plan.steps:
        for name, fact in step.compensation.items():
            if SublayerId.parse(name) not in step.removed.sublayers:
                raise PlanError(f"the plan is damaged: it makes up for {name}, where {step.removed.name} goes")
            factor = fact.get("factor") if isinstance(fact, Mapping) else None
            if not isinstance(fact, Mapping) or (scaled and not _is_factor(factor)):
                raise PlanError(
                    f"the plan is damaged: what makes up for {name} is {repr(fact)[:80]}; expected a mapping"
                    + (f" with a `factor` of 1 / {MOST_FACTOR:,.0f} to {MOST_FACTOR:,.0f}" if scaled else "")
                )


def outcome_of_steps(plan: Any) -> Mapping[str, Any]:
    """The budget of a plan, its outcome that of the steps: somebody may have taken some out by hand."""
    budget, steps = dict(plan.budget), plan.steps
    in_parameters = budget.get("of", "params") == "params"
    reached = sum(step.num_parameters for step in steps)
    whole = reached == budget.get("reached", reached) or not in_parameters
    if whole and budget.get("num_removals", len(steps)) == len(steps):
        return budget
    kept = {name: value for name, value in budget.items() if name not in OUTCOME}
    if not in_parameters:
        warnings.warn(
            f"the plan has {len(steps)} removals, its budget tells of another number: what they came to is unknown",
            stacklevel=2,
        )
        return {**kept, "num_removals": len(steps)}
    found = {**kept, "reached": reached, "num_removals": len(steps)}
    first, last = (steps[0].nll_before, steps[-1].nll_after) if steps else (None, None)
    if budget.get("rise") is None or first is None or last is None:
        return found
    return {**found, "rise": math.expm1(min(last - first, 700))}


def _is_factor(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 / MOST_FACTOR <= value <= MOST_FACTOR
