"""Which row of which evaluation is of which run: by the folder, else by the end of its path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_prune.evaluation import Measured
from lit_prune.report.page.sources import Evaluation, ModelRun


@dataclass(frozen=True)
class Match:
    """A run's row of an evaluation, and the row that it is held against.

    Attributes:
        evaluation: Where both are from.
        after: Of the run's model.
        before: Of the reference; None where there is none.
    """

    evaluation: Evaluation
    after: Measured
    before: Measured | None


def matches(run: ModelRun, runs: Sequence[ModelRun], evaluations: Sequence[Evaluation]) -> list[Match]:
    """The rows of a run.

    Args:
        run: One of `runs`.
        runs: All that the page shows: a row that is of two of them is of none.
        evaluations: All that the page shows.

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
    mine, other_parts = one.parts, other.resolve().parts
    number = min(len(mine), len(other_parts))
    return number > 0 and mine[-number:] == other_parts[-number:]


def _reference(run: ModelRun, row: Measured, evaluation: Evaluation) -> Measured | None:
    """What was named as the reference, else the model that the plan names."""
    base = run.plan.model.name if run.plan is not None else ""
    name = evaluation.against or base
    return next((each for each in evaluation.rows if each.model == name and each is not row), None)
