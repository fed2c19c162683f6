"""Which row of which evaluation is of which run: by the folder, else by the end of its path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_prune.evaluation import Measured
from lit_prune.report.evaluations import Evaluation, Match
from lit_prune.report.runs import ModelRun


def matches(run: ModelRun, runs: Sequence[ModelRun], evaluations: Sequence[Evaluation]) -> list[Match]:
    """The rows of one of some runs; a row that is of two of them is of none.

    Example:
        >>> row = Measured("out/healed", 7, {}, {})
        >>> evaluation = Evaluation("evaluation", {}, (row,))
        >>> runs = [ModelRun(name, Path(name), None) for name in ("/data/out/healed", "/data/out/pruned")]
        >>> [len(matches(run, runs, [evaluation])) for run in runs]
        [1, 0]
    """
    return [
        Match(evaluation, row, _reference(run, row, evaluation))
        for evaluation in evaluations
        for row in evaluation.rows
        if _owner(row.model, runs) is run
    ]


def _owner(model: str, runs: Sequence[ModelRun]) -> ModelRun | None:
    for agree in (_same, _end):
        owners = [run for run in runs if run.model is not None and agree(Path(model).expanduser(), run.model)]
        if owners:
            return owners[0] if len(owners) == 1 else None
    return None


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.resolve() == other.resolve()


def _end(one: Path, other: Path) -> bool:
    """Whether one path is the other's end: an evaluation may have been made in another folder."""
    mine, others = one.parts, other.resolve().parts
    number = min(len(mine), len(others))
    return number > 0 and mine[-number:] == others[-number:]


def _reference(run: ModelRun, row: Measured, evaluation: Evaluation) -> Measured | None:
    """What was named as the reference, else the model that the plan names."""
    base = run.plan.model.name if run.plan is not None else ""
    name = evaluation.against or base
    return next((other for other in evaluation.rows if other.model == name and other is not row), None)
