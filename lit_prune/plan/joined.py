"""Plans that were carried out in turns on one model, as the one plan of all its removals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lit_prune.plan.prune_plan import PrunePlan


def joined(parts: Sequence[tuple[PrunePlan, int]]) -> PrunePlan:
    """The plan of all removals that several plans made of one model, in the order in which they were made.

    What made them is that of the first, but for a compensation; a budget is told where one unit serves all.

    Args:
        parts: Each plan with the number of its removals that earlier trainings made, in the order in which the plans
            get their turns in an epoch.
    """
    plans = [plan for plan, _ in parts]
    first = plans[0]
    if len(plans) == 1:
        return first
    earlier = [step for plan, number in parts for step in plan.steps[:number]]
    # Of one epoch, those of the first plan came first: sorting keeps that.
    later = sorted((step for plan, number in parts for step in plan.steps[number:]), key=lambda step: step.epoch or 0)
    made_up = [plan.compensation for plan in plans if plan.compensation.get("name", "none") != "none"]
    steps, of = (*earlier, *later), {plan.budget.get("of") for plan in plans}
    budget = {**first.budget, "amount": None, "target": None} if of == {"params"} else {}
    for name in budget.keys() & {"amount", "target"}:
        asked = [plan.budget.get(name) for plan in plans]
        budget[name] = None if None in asked else sum(asked)
    if budget:
        budget |= {"reached": sum(step.num_parameters for step in steps), "num_removals": len(steps)}
    return replace(first, steps=steps, compensation=(made_up or [first.compensation])[0], budget=budget)
