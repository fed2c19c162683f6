"""The page's tables: rounds of a search, figures before and after, models and methods side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from lit_prune.evaluation import Measured, Perplexity, Result, TaskScore, exceeds_error
from lit_prune.measure import perplexity_of
from lit_prune.plan import PrunePlan, PruneStep
from lit_prune.report.answers import SIGNS, sign_rows
from lit_prune.report.comparison import cells_of, comparison_columns
from lit_prune.report.page.cells import Cell, Table, table
from lit_prune.report.page.matching import Match
from lit_prune.report.page.sources import Evaluation, ModelRun
from lit_prune.report.summary import FIGURES, Row, figures, number

ROUND = ("round", "epoch", "removed", "score", "parameters", "left", "loss before", "loss after", "ppl after",
         "measured", "order", "passes")  # fmt: skip
BEFORE_AFTER = ("", "before", "after", "change", "more than chance")
CHANCE = "more than chance: the difference is above 1.96 standard errors, as if the two had been measured apart"


def rounds_table(plan: PrunePlan) -> Table:
    """The search, round by round; what no round has is no column."""
    left, rows = plan.model.num_parameters, []
    for index, step in enumerate(plan.steps, 1):
        left -= step.num_parameters
        rows.append([str(index), *_round(step, left / plan.model.num_parameters)])
    notes = ["Losses: mean of a token (nats) on the calibration text, just before and just after the removal."]
    if any(step.measured for step in plan.steps):
        notes.append("Measured: candidates measured in the round, of those there were; the others' scores are older.")
    return table(ROUND, rows, num_words=3, note=" ".join(notes))


def _round(step: PruneStep, left: float) -> Iterator[str]:
    yield "" if step.epoch is None else str(step.epoch)
    yield step.removed.name
    error = step.errors.get(step.removed.name)
    yield "" if step.score is None else number(step.score) + (f" ± {number(error)}" if error is not None else "")
    yield f"{step.num_parameters:,}"
    yield f"{left:.1%}"
    yield from ("" if nll is None else f"{nll:.4f}" for nll in (step.nll_before, step.nll_after))
    yield "" if step.nll_after is None else decimals(perplexity_of(step.nll_after))
    yield f"{len(step.measured)} of {len(step.scores)}" if step.measured else str(len(step.scores) or "")
    yield "disturbed" if step.disturbed else ""
    yield f"{step.cost:,.1f}"


def summary_table(rows: Sequence[Row]) -> Table:
    """Figures before and after a training."""
    return table(FIGURES, [figures(row) for row in rows])


def perplexity_table(match: Match) -> Table:
    """Perplexity on each text before and after."""
    before = match.before.perplexities if match.before else {}
    rows = [_text(name, before.get(name), after) for name, after in match.after.perplexities.items()]
    return table(BEFORE_AFTER, rows, note=CHANCE if before else "")


def tasks_table(match: Match) -> Table:
    """Accuracy on each task before and after."""
    before = match.before.tasks if match.before else {}
    rows = [_task(name, before.get(name), after) for name, after in match.after.tasks.items()]
    return table(BEFORE_AFTER, rows, note=CHANCE if before else "")


def _text(name: str, before: Perplexity | None, after: Perplexity) -> list[str | Cell]:
    if before is None:
        return [name, "", _ppl(after), "", ""]
    difference = after.nll - before.nll
    change = f"{math.expm1(min(difference, 700)):+.1%}"
    return [name, _ppl(before), _ppl(after), change, _chance(exceeds_error(difference, after.error, before.error))]


def _task(name: str, before: TaskScore | None, after: TaskScore) -> list[str | Cell]:
    name = f"{name} ({after.metric})"
    if before is None:
        return [name, "", _score(after), "", ""]
    difference = after.value - before.value
    chance = _chance(exceeds_error(difference, after.error, before.error))
    return [name, _score(before), _score(after), f"{100 * difference:+.1f} points", chance]


def _ppl(found: Perplexity) -> str:
    # The error of exp(nll), to first order.
    shown, error = decimals(found.ppl), decimals(found.ppl * found.error)
    return f"{shown} ± {error}" if found.error else shown


def decimals(value: float) -> str:
    """A perplexity: two decimals where they say something."""
    return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _score(found: TaskScore) -> str:
    return f"{found.value:.1%} ± {found.error:.1%}"


def _chance(exceeds: bool) -> Cell:
    return Cell("yes" if exceeds else "no", strong=exceeds)


def evaluation_table(evaluation: Evaluation, base: str = "") -> Table:
    """All models of an evaluation, with differences from the reference; strong where they exceed their error.

    Args:
        evaluation: As it was read.
        base: The reference, where the evaluation names none.
    """
    rows = evaluation.rows
    reference = next((row for row in rows if row.model == (evaluation.against or base)), None)
    heads = ["model", "parameters", *(f"ppl {text}" for text in rows[0].perplexities)]
    heads += [f"{name} ({score.metric})" for name, score in rows[0].tasks.items()]
    cells = [list(_measured(row, None if row is reference else reference)) for row in rows]
    note = f"In brackets the difference from {reference.model}; bold: above 1.96 standard errors" if reference else ""
    return table(heads, cells, note=note)


def _measured(row: Measured, reference: Measured | None) -> Iterator[str | Cell]:
    yield row.model
    yield f"{row.num_parameters:,}"
    texts = reference.perplexities if reference else {}
    for name, after in row.perplexities.items():
        yield _beside(_text(name, texts.get(name), after))
    tasks = reference.tasks if reference else {}
    for name, score in row.tasks.items():
        yield _beside(_task(name, tasks.get(name), score))


def _beside(cells: Sequence[str | Cell]) -> Cell:
    """A row of `BEFORE_AFTER` as one cell: the value after, and its change."""
    _, _, after, change, chance = cells
    return Cell(f"{after} ({change})" if change else f"{after}", isinstance(chance, Cell) and chance.strong)


def signs_table(evaluation: Evaluation, names: Iterable[str]) -> Table:
    """Signs of damage in the answers of some models."""
    rows = sign_rows({name: evaluation.signs[name] for name in names if name in evaluation.signs})
    note = "Next token and KL at the positions of the reference's answers" if len(rows) > 1 else ""
    return table(SIGNS, rows, note=note)


def runs_table(runs: Sequence[ModelRun]) -> Table:
    """One row a run: what went, what that took, what it did on the calibration text, what healing gave back."""
    heads = ("run", "made from", "method", "made up for", "parameters", "removed", "passes", "ppl before", "ppl after",
             "healing, ppl")  # fmt: skip
    rows = [[run.name, *(_run(run.plan) if run.plan else [""] * (len(heads) - 1))] for run in runs]
    note = "ppl before, after: perplexity on each run's own calibration text, at the first and the last removal"
    return table(heads, rows, num_words=4, note=note)


def _run(plan: PrunePlan) -> Iterator[str]:
    yield plan.model.name or plan.model.model_type
    yield ", ".join(str(each["name"]) for each in (plan.scorer, plan.search) if each.get("name"))
    yield str(plan.compensation.get("name", ""))
    yield f"{plan.model.num_parameters - plan.num_removed_parameters:,}"
    yield f"{plan.num_removed_parameters / plan.model.num_parameters:.1%}"
    yield f"{plan.cost:,.1f}"
    yield from calibration_perplexities(plan) or ("", "")
    healing = plan.healing
    yield f"{decimals(healing['ppl_before'])} → {decimals(healing['ppl_after'])}" if "ppl_after" in healing else ""


def calibration_perplexities(plan: PrunePlan) -> tuple[str, str] | None:
    """On the calibration text, ahead of the first removal and after the last, where both were measured."""
    first, last = (plan.steps[0].nll_before, plan.steps[-1].nll_after) if plan.steps else (None, None)
    return None if first is None or last is None else (decimals(perplexity_of(first)), decimals(perplexity_of(last)))


def comparison_tables(rows: Sequence[Result]) -> Iterator[tuple[str, Table]]:
    """One table for each amount of one model, baselines first, the best pruned value of each column strong."""
    columns = comparison_columns(rows)
    baselines = [row for row in rows if not row.amount]
    for amount in sorted({row.amount for row in rows if row.amount}):
        pruned = [row for row in rows if row.amount == amount]
        cells: list[list[str | Cell]] = [
            [row.label, *(Cell(text, best) for text, best in cells_of(row, pruned, columns))]
            for row in [*baselines, *pruned]
        ]
        yield f"{amount:.0%} of the parameters to remove", table(["method", *(each.head for each in columns)], cells)
