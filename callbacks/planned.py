"""A run that drops what a plan says: the recipe and the goal for it."""

from __future__ import annotations

from dataclasses import replace

from lit_prune.errors import BudgetError, LitPruneError, PlanError
from lit_prune.plan import PrunePlan, Recipe
from lit_prune.searches import Goal


def along(path: str | None, recipe: Recipe, goal: Goal) -> tuple[PrunePlan | None, Recipe, Goal]:
    """The plan of a file or folder, if any, and recipe and goal that follow it, all of it where no amount is asked for.

    Raises:
        BudgetError: More is asked for than the plan removes, or a share of something else than it was made for.
        LitPruneError: The recipe says something else of what goes.
        PlanError: There is no such plan, or it removes nothing.
    """
    if path is None:
        return None, recipe, goal
    plan, default = PrunePlan.load(path), Recipe()
    names = ("scorer", "search", "granularity", "protect")
    if told := [name for name in names if vars(recipe)[name] != vars(default)[name]]:
        raise LitPruneError(f"a plan says what goes, and when: leave out {', '.join(told)}, or the plan")
    if not plan.steps:
        raise PlanError(f"the plan {path} removes nothing")
    if goal.unit == "params":
        whole = plan.num_removed_parameters / plan.model.num_parameters
        if goal.amount is not None and goal.amount > whole:
            raise BudgetError(f"the plan {path} removes {whole:.2%} of the parameters; amount={goal.amount} is more")
        goal = replace(goal, amount=whole if goal.amount is None else goal.amount)
    elif goal.amount is None:
        raise BudgetError(f"say how much of {goal.unit} is to go: amount=0.2; the plan tells of parameters")
    return plan, replace(recipe, search={"name": "planned", "plan": path}), goal
