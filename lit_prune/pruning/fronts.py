"""The smaller plans that a plan holds: its front, as a search would have made it that was told to stop there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from lit_prune.anatomy import Anatomy, find_sublayers
from lit_prune.costs import Prices, price
from lit_prune.errors import BudgetError, PlanError
from lit_prune.plan import Candidate, PrunePlan, PruneStep, SublayerId
from lit_prune.searches import Budget, require_limits


def front_of(
    plan: PrunePlan,
    model: nn.Module,
    *,
    amount: float | None = None,
    num_steps: int | None = None,
    max_rise: float | None = None,
) -> PrunePlan:
    """Take the front of a plan; of several limits, the first that is reached ends it.

    Every removal is the plan's own but, with an amount, perhaps the last: as in a search that was told that amount, of
    the candidates that reach it the one that saves the least goes, by the scores of its round. A progressive search for
    the amount gives the same removals.

    Args:
        plan: A plan whose removals are in the order in which they were found.
        model: An unpruned copy of its model.
        amount: Share of the model's cost to remove, in the unit of the plan: parameters, FLOPs or KV cache.
        num_steps: The number of removals.
        max_rise: The most by which perplexity on the search's text may rise, such as 0.05; measured steps alone tell.

    Returns:
        The smaller plan, without what was found of the whole one: unseen text, healing, what was refitted.

    Raises:
        BudgetError: A limit cannot be, or is beyond the plan; the message names the most that it holds.
        PlanError: The plan's set was decided as a whole, so that its front is no smaller plan, or losses are unknown.
    """
    if amount is not None or max_rise is not None:
        require_limits(amount, max_rise)
    if num_steps is not None and not 1 <= num_steps <= len(plan.steps):
        raise BudgetError(f"the plan has {len(plan.steps)} removals; {num_steps} cannot be its front")
    _require_order(plan)
    anatomy = find_sublayers(model)
    prices = prices_of(plan, model) if amount is not None else Prices.in_parameters(anatomy)
    budget = None if amount is None else Budget(amount, prices.total, of=prices.of)
    front: list[PruneStep] = []
    gone: list[SublayerId] = []
    for step in plan.steps[:num_steps]:
        reached = prices.freed(anatomy, gone)
        if budget is not None and not budget.remaining(reached):
            break
        if max_rise is not None and not _is_under(step, plan, max_rise):
            break
        if budget is not None:
            step = _last_or_own(step, budget, prices, anatomy, gone)
        front.append(step)
        gone += step.removed.sublayers
    reached = prices.freed(anatomy, gone)
    if budget is not None and num_steps is None and max_rise is None and budget.remaining(reached):
        most = reached / prices.total
        raise BudgetError(f"the plan removes {most:.1%} of the model, and {amount:.1%} are asked for; search for more")
    asked = {"amount": amount, "of": prices.of, "total": prices.total, "unit": prices.unit, "max_rise": max_rise}
    budgeted = {**asked, "reached": reached, "num_removals": len(front)}
    mends = plan.asked_compensation
    return replace(plan, steps=tuple(front), budget=budgeted, compensation=mends, unseen={}, healing={})


def _require_order(plan: PrunePlan) -> None:
    """Refuse a plan in which nobody but those that go was scored: they were chosen as one set."""
    first = plan.steps[0].scores if plan.steps else {}
    if len(plan.steps) > 1 and first and set(first) <= {step.removed.name for step in plan.steps}:
        raise PlanError(
            f"the {plan.search.get('name', 'plan')} search chose what goes as one set, so the front of the plan is "
            "none that it would have chosen; search for the smaller amount"
        )


def prices_of(plan: PrunePlan, model: nn.Module) -> Prices:
    """What sublayers cost in the unit of a plan; a BudgetError where another device would say something else."""
    of = plan.budget.get("of", "params")
    if of == "latency":
        raise BudgetError("a share of latency is that of the device of the search; say how many steps instead")
    return price(model, of, num_positions=plan.budget.get("num_positions", 1))


def _is_under(step: PruneStep, plan: PrunePlan, max_rise: float) -> bool:
    before, after = plan.steps[0].nll_before, step.nll_after
    if before is None or after is None:
        raise PlanError("the plan has no losses before and after its removals; say an amount, or how many steps")
    return after - before <= math.log1p(max_rise)


def _last_or_own(
    step: PruneStep, budget: Budget, prices: Prices, anatomy: Anatomy, gone: Sequence[SublayerId]
) -> PruneStep:
    """The removal of a step, or another of its round where that reaches the target and saves less."""
    scores = {Candidate.parse(name): score for name, score in step.scores.items()} or {step.removed: 0.0}
    reached = prices.freed(anatomy, gone)
    sizes = {each: prices.freed(anatomy, [*gone, *each.sublayers]) - reached for each in scores}
    finishes = sizes[step.removed] >= budget.remaining(reached)
    choice = budget.choose(scores, sizes, reached) if finishes else step.removed
    if choice == step.removed:
        return step
    freed = anatomy.num_freed([*gone, *choice.sublayers]) - anatomy.num_freed(gone)
    return replace(step, removed=choice, num_parameters=freed, score=scores[choice], nll_after=None, compensation={})
