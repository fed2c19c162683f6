"""Whether what the file of a plan says can be, and fits together: asked when it is read, before any of it is used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lit_prune.errors import PlanError
from lit_prune.files import require_kinds
from lit_prune.plan.candidates import MAX_BLOCKS, SublayerId

if TYPE_CHECKING:
    from lit_prune.plan.prune_plan import PrunePlan

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
"""Which settings reports and cards show, when they show them, and what these have to hold."""
OUTCOME = ("reached", "rise", "stopped_by", "num_removals")
"""What a budget says of what the removals came to."""
MOST_FACTOR = 1e6
"""No sublayer makes the stream so many times longer or shorter; the weights behind it would overflow, or vanish."""


def require_sound(plan: PrunePlan) -> None:
    """Raise a PlanError where no model could have lost what the plan says, a TypeError where a setting is wrong."""
    for name, is_shown, kinds in SHOWN:
        if is_shown(data := getattr(plan, name)):
            require_kinds(name, data, kinds)
    if plan.budget.get("total") == 0:
        raise TypeError("nothing can be a share of a total of 0")
    _require_possible(plan)
    for step in plan.steps:
        for name, fact in step.compensation.items():
            if SublayerId.parse(name) not in step.removed.sublayers:
                raise PlanError(f"the plan is damaged: it makes up for {name}, where {step.removed.name} goes")
            _require_correction(name, fact, scaled=plan.compensation.get("name") == "scale")


def _require_possible(plan: PrunePlan) -> None:
    model = plan.model
    if not 0 < model.num_blocks <= MAX_BLOCKS:
        raise PlanError(f"the plan is damaged: a model of {model.num_blocks:,} blocks; expected 1 to {MAX_BLOCKS:,}")
    gone = [step.num_parameters for step in plan.steps]
    if model.num_parameters <= 0 or any(number < 0 for number in gone) or sum(gone) > model.num_parameters:
        raise PlanError(f"the plan is damaged: {sum(gone):,} parameters go of {model.num_parameters:,}")
    seen: set[SublayerId] = set()
    for sublayer in plan.removed:
        if sublayer in seen:
            raise PlanError(f"the plan is damaged: it removes {sublayer} twice")
        if sublayer.block >= model.num_blocks:
            raise PlanError(f"the plan is damaged: it removes {sublayer} from a model of {model.num_blocks} blocks")
        seen.add(sublayer)


def _require_correction(name: str, fact: object, *, scaled: bool) -> None:
    """Factors are folded again where the plan is applied, so that they must be such that a stream can have."""
    if not isinstance(fact, Mapping) or (scaled and not _is_factor(fact.get("factor"))):
        raise PlanError(
            f"the plan is damaged: what makes up for {name} is {repr(fact)[:80]}; expected a mapping"
            + (f" with a `factor` of 1 / {MOST_FACTOR:,.0f} to {MOST_FACTOR:,.0f}" if scaled else "")
        )


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 / MOST_FACTOR <= value <= MOST_FACTOR


def outcome_of_steps(plan: PrunePlan) -> Mapping[str, Any]:
    """The budget of a plan, its outcome that of the steps: somebody may have taken some out by hand."""
    budget, num_steps = dict(plan.budget), len(plan.steps)
    in_parameters = budget.get("of", "params") == "params"
    reached = plan.num_removed_parameters
    whole = reached == budget.get("reached", reached) or not in_parameters
    if whole and budget.get("num_removals", num_steps) == num_steps:
        return budget
    found = {**{name: value for name, value in budget.items() if name not in OUTCOME}, "num_removals": num_steps}
    if not in_parameters:
        warnings.warn(
            f"the plan has {num_steps} removals, its budget tells of another number: what they came to is unknown",
            stacklevel=2,
        )
        return found
    found["reached"] = reached
    if budget.get("rise") is not None and plan.nll_rise is not None:
        found["rise"] = math.expm1(min(plan.nll_rise, 700))
    return found
