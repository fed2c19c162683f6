"""Whole models pruned without training: by a search, or by a plan that was made before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lit_prune.anatomy import find_sublayers
from lit_prune.data import fingerprint
from lit_prune.errors import PlanError
from lit_prune.measure import Journal, WhatIf, input_ids_of, progress_bar, require_understood, weights_fingerprint
from lit_prune.plan import PrunePlan, SublayerId
from lit_prune.pruner import Named, Pruner, describe_run
from lit_prune.scorers import Scorer
from lit_prune.searches import Budget, Search
from lit_prune.surgery import compact, remove


def prune(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    amount: float,
    scorer: Named | Scorer = "nri",
    search: Named | Search = "progressive",
    granularity: str = "sublayer",
    protect: Sequence[str] = (),
    model_name: str = "",
    calibration: Mapping[str, Any] | None = None,
    progress: bool = True,
    journal: str | Path | None = None,
    on_step: Callable[[PrunePlan], object] = lambda plan: None,
    max_state_bytes: int | None = None,
) -> PrunePlan:
    """Prune a model in place, without training.

    Args:
        model: A causal language model of transformers, perhaps wrapped by peft.
        batches: Calibration: dicts with `input_ids` [batch, seq], perhaps `labels` and `attention_mask`.
        amount: Share of all parameters to remove, above 0 and below 1.
        scorer: See `Pruner`.
        search: See `Pruner`.
        granularity: See `Pruner`.
        protect: See `Pruner`.
        model_name: For the plan's readers.
        calibration: Where the batches came from, for the plan's readers.
        progress: Whether to show a progress bar.
        journal: File to which every measurement is written as it is made. Where it is there already, and of the same
            model, data and settings, its measurements are not made again: a search that was killed goes on.
        on_step: Called with the plan so far after every removal.
        max_state_bytes: See `WhatIf`.

    Returns:
        The plan: what was removed, in which order, and why.

    Raises:
        LitPruneError: One of its subclasses says what was wrong; checked before the first measurement where possible.
    """
    options: Any = {"scorer": scorer, "search": search, "granularity": granularity, "protect": protect}
    pruner = Pruner(model, **options, model_name=model_name)
    budget = Budget(amount, pruner.num_parameters)
    pruner.require_reachable(budget)
    require_understood(pruner.model)
    batches = list(batches)
    pruner.plan = describe_run(pruner.plan, budget, {**(calibration or {}), **fingerprint(batches)})
    kept = Journal(journal, _journal_header(pruner, batches))
    with progress_bar("scoring", shown=progress) as advance:
        what_if = WhatIf(model, batches, progress=advance, journal=kept, max_state_bytes=max_state_bytes)
        while budget.remaining(pruner.plan.num_removed_parameters):
            pruner.step(what_if, budget)
            on_step(pruner.plan)
    compact(pruner.model)
    return pruner.plan


def _journal_header(pruner: Pruner, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What measurements are valid for, and the settings that decide which are made."""
    plan = pruner.plan.to_dict()
    named = ("scorer", "search", "budget", "calibration")
    return {
        **{name: plan[name] for name in named},
        "granularity": pruner.granularity,
        "protect": sorted(map(str, pruner.protected)),
        "model": {name: value for name, value in plan["model"].items() if name not in ("name", "revision")},
        "weights": weights_fingerprint(pruner.model),
        "batches": [list(input_ids_of(batch).shape) for batch in batches],
    }


def apply_plan(model: nn.Module, plan: PrunePlan) -> None:
    """Remove what a plan says from an unpruned copy of its model, in place.

    Structure is compared, not weights: a plan fits every fine-tuned copy of its model.

    Raises:
        PlanError: The plan was made for a model of another structure; nothing is removed then.
    """
    anatomy = find_sublayers(model)
    plan.model.require_same(anatomy.facts())
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
    remove(model, plan.removed)
    compact(model)
