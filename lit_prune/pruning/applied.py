"""Whole models pruned by a plan that was made before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lit_prune.anatomy import find_sublayers
from lit_prune.data import fingerprint
from lit_prune.errors import LitPruneError, PlanError
from lit_prune.healing import (
    Compensation,
    DenseTeacher,
    create_compensation,
    finish,
    fold_factor,
    require_possible,
    wants_dense,
)
from lit_prune.measure import WhatIf
from lit_prune.plan import ModelFacts, Named, PrunePlan, SublayerId, described
from lit_prune.pruning.fronts import front_of
from lit_prune.pruning.progress import progress_bar
from lit_prune.pruning.removal import take_out
from lit_prune.surgery import compact, remove, require_understood


def apply_plan(
    model: nn.Module,
    plan: PrunePlan,
    *,
    amount: float | None = None,
    num_steps: int | None = None,
    max_rise: float | None = None,
    uncompensated: bool = False,
) -> PrunePlan:
    """Remove what a plan says from an unpruned copy of its model, in place; factors of `compensate: scale` are folded.

    Blocks are compared, not weights nor vocabularies: a plan fits every fine-tuned copy of its model.

    Args:
        model: An unpruned copy of the model that the plan was made for, perhaps fine-tuned.
        plan: The removals, in their order.
        amount: Only the front of the plan up to this share: see `front_of`, as for the next two.
        num_steps: Only so many removals.
        max_rise: Only those that keep perplexity on the search's text under this rise.
        uncompensated: Whether to remove alone, and leave the weights that stay as they are.

    Returns:
        The plan of this copy, which counts its parameters.

    Raises:
        BudgetError: The plan holds no such front.
        PlanError: The plan was made for a model of another structure, or with a compensation whose weights are in the
            pruned model alone; nothing is removed then.
    """
    if (amount, num_steps, max_rise) != (None, None, None):
        plan = front_of(plan, model, amount=amount, num_steps=num_steps, max_rise=max_rise)
    name = plan.compensation.get("name", "none")
    if name not in ("none", "scale") and not uncompensated:
        raise PlanError(
            f"the plan was made with the compensation {name!r}, whose weights are in the pruned model and not in the "
            "plan: load that model, or apply the removals alone with uncompensated=True"
        )
    facts = _require_fit(model, plan)
    if name == "none" or uncompensated:
        remove(model, plan.removed)
    else:
        factors = {name: fact["factor"] for step in plan.steps for name, fact in step.compensation.items()}
        for sublayer in plan.removed:
            if str(sublayer) in factors:
                fold_factor(model, sublayer, factors[str(sublayer)])
            remove(model, [sublayer])
    compact(model)
    if uncompensated:
        plan = replace(plan, compensation={}, steps=tuple(replace(step, compensation={}) for step in plan.steps))
    return replace(plan, model=facts, unseen={})


def compensate_plan(
    model: nn.Module,
    plan: PrunePlan,
    batches: Iterable[Mapping[str, Any]],
    compensate: Named | Compensation,
    *,
    calibration: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> PrunePlan:
    """Remove what a plan says, in place and in its order, and make up for each removal on text of one's own.

    A removal costs one pass over the batches: text for it may be many times what a search can look at.

    Args:
        model: An unpruned copy of the model that the plan was made for.
        plan: The removals, in their order; how it was compensated does not count.
        batches: The text to make up on: batches as for `prune`.
        compensate: See `Recipe`.
        calibration: Facts about the origin of the batches, in plain types, for the plan's readers.
        progress: Whether to show a progress bar.

    Returns:
        The plan of the model as it is now.

    Raises:
        ModelError: The compensation cannot be folded into this model.
        PlanError: The plan was made for a model of another structure; nothing is removed then.
    """
    compensation = create_compensation(compensate)
    if compensation is None:
        raise LitPruneError("there is nothing to compensate with; name a compensation, or call apply_plan")
    model_facts = _require_fit(model, plan)
    require_possible(compensation, model)
    batches = list(batches)
    with progress_bar("compensating", shown=progress, in_one=True) as bar:
        what_if = WhatIf(model, batches, progress=bar)
        teacher = DenseTeacher(model, adapted=True) if wants_dense(compensation) else None
        corrections = [take_out(what_if, step.removed, compensation)[1] for step in plan.steps]
        done = {} if teacher is None else finish(compensation, what_if, teacher)
    steps = tuple(replace(step, compensation=made) for step, made in zip(plan.steps, corrections, strict=True))
    compact(model)
    text = {**(calibration or {}), **fingerprint(batches)}
    facts = {**described(compensate, compensation), "calibration": text, **done, "cost": what_if.cost}
    return replace(plan, model=model_facts, steps=steps, compensation=facts, unseen={})


def refit(
    model: nn.Module, plan: PrunePlan, batches: Iterable[Mapping[str, Any]], *, progress: bool = True, **options: Any
) -> PrunePlan:
    """Remove what a plan says, in place, and solve anew for every output projection behind the first removal.

    `compensate_plan` with `compensate="refit"`; `options` are those of `Refit`.
    """
    return compensate_plan(model, plan, batches, {"name": "refit", **options}, progress=progress)


def _require_fit(model: nn.Module, plan: PrunePlan) -> ModelFacts:
    """Refuse a model of another structure than the plan's; returns its own facts, under the plan's name."""
    anatomy = find_sublayers(model)
    plan.model.require_same(anatomy.facts())
    if anatomy.removed and anatomy.num_parameters != plan.model.num_parameters:
        raise PlanError(
            f"this plan was made for a model of {plan.model.num_parameters:,} parameters; this one has lost "
            f"{len(anatomy.removed)} sublayers and has {anatomy.num_parameters:,}. Apply it to an unpruned copy"
        )
    gone: list[SublayerId] = []
    for step in plan.steps:
        # Norms that a block's sublayers share go with the second of them.
        freed = anatomy.num_freed([*gone, *step.removed.sublayers]) - anatomy.num_freed(gone)
        gone += step.removed.sublayers
        if freed != step.num_parameters:
            raise PlanError(
                f"this plan was made for another model: {step.removed.name} has {step.num_parameters} parameters "
                f"in the plan, {freed} in the model"
            )
    require_understood(model)
    return anatomy.facts(plan.model.name, plan.model.revision)
