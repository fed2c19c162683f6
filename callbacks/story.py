"""What a removal looks like in the run's loggers."""

from __future__ import annotations

import math

import lightning as L

from lit_prune.plan import PrunePlan
from lit_prune.report import log_figure, log_scalars, score_map


def log_removal(trainer: L.Trainer, plan: PrunePlan) -> None:
    """Log the last removal of a plan: the share left by optimizer steps, scores and their picture by rounds."""
    if not trainer.is_global_zero or not trainer.loggers:
        return
    step, round_number = plan.steps[-1], len(plan.steps)
    left = 1 - plan.num_removed_parameters / plan.model.num_parameters
    metrics = {f"score/{name}": score for name, score in step.scores.items()}
    for name, nll in (("prune/ppl_before", step.nll_before), ("prune/ppl_after", step.nll_after)):
        metrics |= {} if nll is None else {name: math.exp(min(nll, 700.0))}
    figure = score_map(
        [each.scores for each in plan.steps],
        [each.removed.name for each in plan.steps],
        num_blocks=plan.model.num_blocks,
        title=f"epoch {step.epoch}: {step.removed.name} removed, {left:.1%} of the parameters left",
    )
    for logger in trainer.loggers:
        log_scalars(logger, {"prune/parameters_left": left}, trainer.global_step)
        log_scalars(logger, metrics, round_number)
        log_figure(logger, "score_map", figure, round_number)
