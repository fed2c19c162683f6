"""Whole models pruned by a search, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from lit_prune.costs import price
from lit_prune.data import fingerprint
from lit_prune.errors import LitPruneError
from lit_prune.healing import (
    Compensation,
    Solutions,
)
from lit_prune.loading.processes import processes_of_fabric
from lit_prune.measure import (
    Journal,
    SharedJournal,
    WhatIf,
    input_ids_of,
    inputs_fingerprint,
    model_fingerprints,
    shares_of,
)
from lit_prune.plan import Named, PrunePlan, Recipe, Scores
from lit_prune.pruning.chained import go_on, prices_after
from lit_prune.pruning.expected import expected_of
from lit_prune.pruning.progress import progress_bar
from lit_prune.pruning.pruner import Pruner
from lit_prune.pruning.unseen import Unseen
from lit_prune.searches import Budget, Goal, Quota, require_limits, unit_options
from lit_prune.surgery import compact, is_sharded, require_understood

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def prune(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    amount: float | None = None,
    of: Named = "params",
    max_rise: float | None = None,
    scorer: Named | Callable[..., Scores] = "nri",
    search: Named | Callable[..., Scores] = "progressive",
    granularity: str = "sublayer",
    protect: Sequence[str] = (),
    compensate: Named | Compensation = "none",
    compensate_on: Iterable[Mapping[str, Any]] | None = None,
    unseen: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    model_name: str = "",
    calibration: Mapping[str, Any] | None = None,
    progress: bool = True,
    journal: str | Path | None = None,
    on_step: Callable[[PrunePlan], object] = lambda plan: None,
    max_state_bytes: int | None = None,
    forks: int = 1,
    offload: bool = False,
    fabric: Fabric | None = None,
    after: PrunePlan | None = None,
    optimizers: Iterable[Optimizer] = (),
) -> PrunePlan:
    """Prune a model in place, without training or between the steps of a training loop of one's own.

    Args:
        model: A causal language model of transformers, perhaps wrapped by peft; or a sequence classifier, as reward
            models are (`…ForSequenceClassification`), which goes by its own loss.
        batches: Calibration: dicts with `input_ids` [batch, seq], perhaps `labels` and `attention_mask`; of a
            classifier with `labels` of the sequences, [batch] or [batch, num_labels].
        amount: See `Goal`.
        of: See `Goal`.
        max_rise: See `Goal`.
        scorer: See `Recipe`.
        search: See `Recipe`.
        granularity: See `Recipe`.
        protect: See `Recipe`.
        compensate: See `Recipe`.
        compensate_on: Batches for a compensation that is fitted at the end, as `refit` is: many times the text that a
            search looks at. Those of the search when None.
        unseen: Batches by the name of a text that nothing is decided by: the plan's `unseen` tells how much worse the
            model is on each, after any compensation.
        model_name: The model's name, for the plan's readers.
        calibration: Facts about the origin of the batches, in plain types, for the plan's readers.
        progress: Whether to show a progress bar.
        journal: File to which every measurement is written as it is made. Where it is there already, and of the same
            model, data and settings, its measurements are not made again: a search that was killed goes on. What a
            compensation at the end has solved for is in a folder beside it (`.refit`) until all of it is done.
        on_step: Called with the plan so far after every removal, on process 0.
        max_state_bytes: See `WhatIf`.
        forks: See `WhatIf`.
        offload: See `WhatIf`.
        fabric: Lightning's Fabric, launched, where several processes share the search. Each gives its own copy of the
            model, or its shard of it (see `shard`), and all batches, measures some sequences of every batch, and ends
            with the same model and plan. Process 0 reads and writes the journal, whatever the number of processes was
            before.
        after: The plan of what the model has lost already, which this one goes on from: amounts are shares of the first
            model, and a ceiling is above its loss.
        optimizers: Optimizers of the model's parameters, which forget what is removed and keep the rest; schedulers go
            on. Blocks that have lost both sublayers stay in the list then, as they are named in checkpoints of a loop;
            DDP waits for what went, and has to be put around the model anew.

    Returns:
        The plan: what was removed, in which order, and why, beginning with the removals of `after`. `plan.budget` holds
        what was asked for, and as `total`, `target` and `reached` in its own `unit`, `rise` of perplexity where it was
        limited, and what `stopped_by`.

    Raises:
        LitPruneError: One of its subclasses says what was wrong; checked before the first measurement where possible.
    """
    require_limits(amount, max_rise)
    goal, recipe = Goal(amount, of, max_rise), Recipe(scorer, search, granularity, protect, compensate)
    pruner = Pruner(model, recipe, model_name=model_name)
    optimizers = list(optimizers)
    go_on(pruner, after, optimizers)
    if is_sharded(pruner.model):
        pruner.leave_uncompensated("the model is sharded over processes")
        require_shardable(pruner, goal.unit)
    batches, processes = list(batches), processes_of_fabric(fabric)
    # Made once before anything is written: what cannot be measured is told here.
    measure = partial(WhatIf, pruner.model, max_state_bytes=max_state_bytes, forks=forks, offload=offload)
    whole = measure(batches)
    shares, positions = shares_of(whole.batches, processes), whole.num_positions
    text = batches if compensate_on is None else list(compensate_on)
    fitted_on = shares if compensate_on is None else shares_of(measure(text).batches, processes)
    # A search that goes on decides by the seconds that it began with.
    prices = processes.first(
        lambda: price(pruner.model, of, num_positions=positions, known=Journal.header(journal).get("prices"))
    )
    pruner.prices = prices_after(after, of, prices)
    budget = goal.budget(pruner.prices.total, pruner.prices.of)
    pruner.require_reachable(budget)
    require_understood(pruner.model)
    pruner.plan = describe_run(pruner.plan, budget, {**(calibration or {}), **fingerprint(batches)})
    sizes = [len(input_ids_of(batch)) for batch in batches]
    judge = Unseen(unseen or {}, measure, processes)
    # For one process without a file, nobody reads what takes a while to hash.
    header = _journal_header(pruner, goal, batches) if journal is not None or processes.size > 1 else {}
    with (
        SharedJournal(journal, header, processes, sizes) as kept,
        progress_bar("scoring", goal=budget.target, shown=progress and processes.is_first) as bar,
    ):
        what_if = measure(shares, processes=processes, progress=bar, journal=kept)
        bar.foresee(expected_of(pruner, Quota(budget.target), what_if), len(shares))
        for _ in pruner.steps(what_if, budget, optimizers=optimizers):
            bar.removed(pruner.reached)
            if processes.is_first:
                on_step(pruner.plan)
    solutions = None
    if journal is not None and pruner.mends:
        removed = [step.removed.name for step in pruner.plan.steps]
        about = {**header, "removed": removed, "compensated_on": fingerprint(text)}
        solutions = Solutions(Path(journal).with_suffix(".refit"), about, processes)
    with progress_bar("compensating", shown=progress and processes.is_first, in_one=True) as bar:
        pruner.mend(lambda: measure(fitted_on, processes=processes, progress=bar), solutions)
    if not optimizers:
        compact(pruner.model)
    if solutions is not None:
        solutions.clear()
    pruner.record_outcome(budget, left="max_rise")
    pruner.plan = replace(pruner.plan, unseen=judge.risen())
    return pruner.plan


def _journal_header(pruner: Pruner, goal: Goal, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What measurements are valid for, and the settings that decide which are made."""
    plan = pruner.plan.to_dict()
    named = ("scorer", "search", "compensation", "calibration")
    return {
        **{name: plan[name] for name in named},
        "budget": {**vars(goal), "of": unit_options(goal.of)},
        "prices": pruner.prices.measured,
        "granularity": pruner.granularity,
        "protect": sorted(map(str, pruner.protected)),
        "model": {name: value for name, value in plan["model"].items() if name not in ("name", "revision")},
        **model_fingerprints(pruner.model),
        "inputs": inputs_fingerprint(pruner.model, batches),
        "scorer_data": pruner.scorer.fingerprint(pruner.model),
        "batches": [list(input_ids_of(batch).shape) for batch in batches],
    }


def require_shardable(pruner: Pruner, unit: str) -> None:
    """Refuse, before any work, what cannot be measured on a model that is sharded; `unit` is that of the budget.

    Raises:
        LitPruneError: The message says what cannot.
    """
    trouble = "the latency of its sublayers cannot be measured on one device alone" if unit == "latency" else None
    if pruner.scorer.gradients:
        trouble = f"{type(pruner.scorer).__name__} wants gradients of whole weights"
    if (compensation := pruner.plan.compensation.get("name", "none")) != "none":
        trouble = f"the compensation {compensation!r} changes whole weights"
    if trouble:
        raise LitPruneError(
            f"the model is sharded over processes, and {trouble}; use a single device or DDP, or another"
        )


def describe_run(
    plan: PrunePlan, budget: Budget, calibration: Mapping[str, Any], *, schedule: object = None
) -> PrunePlan:
    """The plan with what was asked for and the tokens that score it."""
    asked = asdict(budget) if schedule is None else {**asdict(budget), "schedule": str(schedule)}
    return replace(plan, budget=asked, calibration=dict(calibration))
