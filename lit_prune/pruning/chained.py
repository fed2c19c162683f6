"""A search that goes on from an earlier one of the same model: shares stay those of the first, plans become one.

All that has to be known of the first model is in the plan of what it has lost, which a loop keeps in its checkpoints
anyway; an object that remembered the model would need a state of its own there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from lit_prune.costs import Prices
from lit_prune.errors import BudgetError, PlanError
from lit_prune.plan import PrunePlan
from lit_prune.pruning.pruner import Pruner
from lit_prune.searches import unit_options
from lit_prune.surgery import removed_sublayers, require_forgetful


def go_on(pruner: Pruner, after: PrunePlan | None, optimizers: Iterable[Optimizer]) -> None:
    """Let a new pruner add to the plan of what its model has lost; its prices are set afterwards.

    Raises:
        LitPruneError: One of the optimizers keeps parameters where nobody can drop them.
        PlanError: The plan is another model's, or what made up for its removals is not what does so now.
    """
    for optimizer in optimizers:
        require_forgetful(optimizer)
    if after is None:
        return
    pruner.plan.model.require_same(after.model)
    gone = removed_sublayers(pruner.model)
    if kept := [str(sublayer) for sublayer in after.removed if sublayer not in gone]:
        raise PlanError(f"`after` is the plan of what the model has lost, and it has {', '.join(kept)}")
    made_up, now = after.compensation, pruner.plan.compensation
    names = {each.get("name", "none") for each in (made_up, now)} - {"none"}
    if len(names) > 1:
        raise PlanError(f"one plan has one compensation; found {' and '.join(sorted(names))}")
    pruner.plan = replace(
        pruner.plan, model=after.model, steps=after.steps, compensation={**now, **made_up} if made_up else now
    )
    pruner.num_earlier = len(after.steps)


def prices_after(after: PrunePlan | None, of: Any, prices: Prices) -> Prices:
    """Prices of a model that has lost what a plan says, with the first model's total; without a plan as they are.

    Raises:
        BudgetError: Nobody knows what the removals of the plan were in this unit.
    """
    if after is None or not after.steps:
        return prices
    if prices.sublayers is None:
        return replace(prices, total=after.model.num_parameters)
    told = {"of": prices.of, **prices.conditions}
    differs = [name for name, value in told.items() if after.budget.get(name) != value]
    if differs or "reached" not in after.budget:
        raise BudgetError(
            f"{len(after.steps)} removals were made under an amount of {after.budget.get('of', 'params')}, and nobody "
            f"knows what they would have been of {unit_options(of)['name']} now ({', '.join(differs)} differ); go on "
            "with the same `of` and sequences as long"
        )
    # Of what is gone only the sum is asked for.
    each = after.budget["reached"] / len(after.removed)
    gone = dict.fromkeys(after.removed, each)
    return replace(prices, total=after.budget["total"], sublayers={**prices.sublayers, **gone})
