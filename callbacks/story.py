"""What a run looks like in its loggers: settings with final figures, each removal, the plan at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L

from lit_prune.costs import Costs, count_costs
from lit_prune.errors import MeasureError
from lit_prune.plan import PLAN_FILE, PrunePlan
from lit_prune.pruning import Pruner
from lit_prune.report import log_figure, log_files, log_scalars, log_settings, log_text, plan_markdown, plan_score_map

from .trainers import callbacks_of, leaves_nothing, logged_step, run_folder

PARAMETERS, RISE = "final/parameters_left", "final/ppl_rise"
FINAL_FIGURES = (PARAMETERS, RISE)
"""Logged at the end of every run; the rise is that of validation perplexity, first before to last after a removal."""


def log_beginning(trainer: L.Trainer, settings: Mapping[str, Any], pruning: Sequence[Any]) -> None:
    """Log the module's settings and those of every `SublayerPruneCallback`, with the names of the final figures.

    Sweeps are sorted by them; callbacks may name figures of their own as `final_figures`. Of several callbacks that
    prune, each has its granularity in the names.
    """
    asked: dict[str, Any] = {}
    for callback in pruning:
        name = "prune" if len(pruning) == 1 else f"prune/{callback.course.pruner.granularity}"
        asked |= {f"{name}/{setting}": value for setting, value in _asked(callback).items()}
    others = [name for callback in callbacks_of(trainer) for name in getattr(callback, "final_figures", ())]
    for logger in trainer.loggers:
        log_settings(logger, {**settings, **asked}, [*FINAL_FIGURES, *others])


def _asked(callback: Any) -> dict[str, Any]:
    goal, pruner, mending = callback.course.allowance.goal, callback.course.pruner, callback.mending
    return {
        "amount": goal.amount,
        "of": goal.unit,
        "max_rise": goal.max_rise,
        "granularity": pruner.granularity,
        "scorer": pruner.plan.scorer["name"],
        "search": pruner.plan.search["name"],
        "lora_rank": mending.lora.rank if mending.lora else 0,
        "distill": mending.distillation is not None,
    }


def counted_costs(trainer: L.Trainer, pruner: Pruner, num_positions: int) -> Costs | None:
    """What a token costs now, None where no logger would show it or the model's arithmetic cannot be counted."""
    if not (trainer.is_global_zero and trainer.loggers):
        return None
    try:
        return count_costs(pruner.model, num_positions)
    except MeasureError:
        return None


def log_removal(trainer: L.Trainer, plan: PrunePlan, costs: Costs | None) -> None:
    """Log the last removal of a plan, its number, what is left, scores and their picture, by optimizer steps.

    Of the costs of the model when this fit began, the shares that are left foretell its speed.
    """
    if not (trainer.is_global_zero and trainer.loggers):
        return
    step, left = plan.steps[-1], _parameters_left(plan)
    metrics = {**removal_figures(plan), **(_costs_left(plan, costs) if costs else {})}
    metrics |= {f"score/{name}": score for name, score in step.scores.items()}
    figure = plan_score_map(plan, f"epoch {step.epoch}: {step.removed.name} removed, {left:.1%} of the parameters left")
    for logger in trainer.loggers:
        log_scalars(logger, metrics, logged_step(trainer))
        log_figure(logger, "score_map", figure, logged_step(trainer))


def log_end(trainer: L.Trainer, plan: PrunePlan) -> None:
    """Log the plan as a table and a file, and what the run came to; call it on every process."""
    folder = run_folder(trainer)
    if not (trainer.is_global_zero and trainer.loggers and plan.steps) or leaves_nothing(trainer):
        return
    file = plan.save(folder / PLAN_FILE)
    for logger in trainer.loggers:
        log_text(logger, "plan", plan_markdown(plan), logged_step(trainer))
        log_scalars(logger, final_figures(plan), logged_step(trainer))
        log_files(logger, [file])


def removal_figures(plan: PrunePlan) -> dict[str, float]:
    """What the last removal of a plan came to: removals so far, the share of parameters left, and perplexities."""
    step = plan.steps[-1]
    figures = {"prune/removals": len(plan.steps), "prune/parameters_left": _parameters_left(plan)}
    for name, nll in (("prune/ppl_before", step.nll_before), ("prune/ppl_after", step.nll_after)):
        figures |= {} if nll is None else {name: math.exp(min(nll, 700.0))}
    return figures


def final_figures(plan: PrunePlan) -> dict[str, float]:
    """`FINAL_FIGURES` of a plan: the share of parameters left, and the rise where losses are known."""
    rise = plan.nll_rise
    return {PARAMETERS: _parameters_left(plan), **({} if rise is None else {RISE: math.expm1(min(rise, 700.0))})}


def _parameters_left(plan: PrunePlan) -> float:
    return 1 - plan.num_removed_parameters / plan.model.num_parameters


def _costs_left(plan: PrunePlan, costs: Costs) -> dict[str, float]:
    gone = [sublayer for sublayer in plan.removed if sublayer in costs.flops]
    left = {"prune/flops_left": 1 - sum(costs.flops[sublayer] for sublayer in gone) / costs.total_flops}
    if costs.total_kv_elements:
        numbers = sum(costs.kv_elements.get(sublayer, 0) for sublayer in gone)
        left["prune/kv_cache_left"] = 1 - numbers / costs.total_kv_elements
    return left
