"""What the page says of one run, one evaluation, one comparison: everything that the templates write out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from markupsafe import Markup

from lit_prune.evaluation import Result
from lit_prune.measure import perplexity_of
from lit_prune.report.comparison import rank_correlation
from lit_prune.report.page import figures as draw
from lit_prune.report.page import tables
from lit_prune.report.page.cells import Card, Table, short
from lit_prune.report.page.making import how_to, made
from lit_prune.report.page.matching import Match
from lit_prune.report.page.network import Block, network_map
from lit_prune.report.page.sources import AnalysisRun, ComparisonRun, Dialogue, Evaluation, ModelRun, Sources
from lit_prune.report.summary import TIMES, figures, number
from lit_prune.searches import outcome_in_words

Turn = tuple[str, list[tuple[str, str]]]
"""What the user says, and who answers what."""


class RunView:
    """One run, section by section; what there is no data for is None or empty.

    Args:
        run: Its sources.
        found: Its rows of evaluations.
        trust_remote_code: Run code that comes with the model, to find out how it is loaded.
    """

    def __init__(self, run: ModelRun, found: Sequence[Match], *, trust_remote_code: bool = False) -> None:
        self.name = run.name
        self.title = (run.plan.model.name or run.plan.model.model_type) if run.plan else ""
        # Two evaluations may have measured the same.
        self.cards = list(dict.fromkeys(_cards(run, found)))
        self.blocks: list[Block] = network_map(run.plan) if run.plan else []
        self.rounds = tables.rounds_table(run.plan) if run.plan and run.plan.steps else None
        self.search_figure = draw.search_figure(run.plan) if run.plan else None
        self.score_map = draw.score_picture(run.plan) if run.plan else None
        self.summary = tables.summary_table(run.summary.rows) if run.summary else None
        self.notes = run.summary.notes if run.summary else ()
        self.training_figure = draw.training_figure(run.curves)
        self.perplexities = _by_table((tables.perplexity_table(each), each) for each in found)
        self.tasks = _by_table((tables.tasks_table(each), each) for each in found if each.after.tasks)
        self.signs = _by_table((tables.signs_table(each.evaluation, _pair(each)), each) for each in _answered(found))
        self.dialogues = list(_dialogues(run, found))
        self.how_to = how_to(run, trust_remote_code=trust_remote_code)
        self.made = made(run.plan) if run.plan else []
        self.settings = run.settings


class EvaluationView:
    """All models of one evaluation.

    Args:
        evaluation: As it was read.
        base: The reference, where the evaluation names none.
        with_answers: Whether no run shows them.
    """

    def __init__(self, evaluation: Evaluation, base: str, *, with_answers: bool) -> None:
        self.name = evaluation.name
        self.table: Table = tables.evaluation_table(evaluation, base)
        self.facts = evaluation_facts(evaluation.settings)
        self.figures = list(_evaluation_figures(evaluation))
        shown = with_answers and evaluation.signs
        self.signs = tables.signs_table(evaluation, evaluation.signs) if shown else None
        self.dialogues = [_turns(each, list(each.answers)) for each in evaluation.answers] if with_answers else []


@dataclass(frozen=True)
class ComparedModel:
    """One model of a comparison: tables by amount, figures, maps of what went, and notes."""

    name: str
    tables: list[tuple[str, Table]]
    figures: list[Markup]
    maps: list[tuple[str, str]]
    notes: list[str]


class ComparisonView:
    """Methods side by side, model by model."""

    def __init__(self, comparison: ComparisonRun) -> None:
        self.name = comparison.name
        self.facts = evaluation_facts(comparison.settings)
        rows = comparison.rows
        self.models = [_compared([row for row in rows if row.model == name]) for name in _names(rows)]


class AnalysisView:
    """The pictures of an analysis, one below the other."""

    def __init__(self, analysis: AnalysisRun) -> None:
        self.name = analysis.name
        self.facts = evaluation_facts(analysis.settings)
        self.models = ", ".join(analysis.models)
        self.pictures = [(title, draw.png_address(each)) for title, each in analysis.pictures.items()]


def overview_figure(sources: Sources) -> Markup | None:
    """Perplexity on the calibration text against parameters, where no evaluation says more."""
    if sources.evaluations:
        return None
    points = {}
    for run in sources.models:
        last = run.plan.steps[-1].nll_after if run.plan and run.plan.steps else None
        if run.plan and last is not None:
            left = 100 * (1 - run.plan.num_removed_parameters / run.plan.model.num_parameters)
            points[run.name] = (left, perplexity_of(last))
    return draw.points_figure(points, "parameters left (%)", "perplexity, calibration tokens")


def evaluation_facts(settings: Mapping[str, Any]) -> str:
    """Settings in one line, without those that say nothing."""
    listed = {name: value for name, value in settings.items() if value is not None and not name.startswith("lit_prune")}
    return ", ".join(f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in listed.items())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _answered(found: Iterable[Match]) -> Iterator[Match]:
    return (each for each in found if each.after.model in each.evaluation.signs)


def _pair(match: Match) -> list[str]:
    return [*([match.before.model] if match.before else []), match.after.model]


def _by_table(found: Iterable[tuple[Table, Match]]) -> dict[Table, str]:
    """Each table once, with the names of the evaluations that it is from."""
    names: dict[Table, str] = {}
    for table, match in found:
        names[table] = f"{names[table]}, {match.evaluation.name}" if table in names else match.evaluation.name
    return names


def _cards(run: ModelRun, found: Sequence[Match]) -> Iterator[Card]:
    plan = run.plan
    if plan is not None:
        before, gone = plan.model.num_parameters, plan.num_removed_parameters
        yield Card("parameters", f"{short(before)} → {short(before - gone)}", f"{gone:,} removed")
        yield Card("removed", f"{gone / before:.1%}", f"of the parameters, in {len(plan.steps)} removals")
        yield from (Card("budget", *_split(line)) for line in outcome_in_words(plan.budget))
    yield from _perplexity_cards(run, found)
    for row in run.summary.rows if run.summary else ():
        if row.unit in TIMES:
            name, before_text, after_text, change = figures(row)
            yield Card(name, f"{before_text} → {after_text}", change)
    if plan is not None and plan.steps:
        tokens = plan.calibration.get("num_tokens")
        over = f", over {tokens:,} tokens" if isinstance(tokens, int) else ""
        yield Card("cost of the search", f"{plan.cost:,.1f}", f"dense forward passes{over}")
    if plan is not None and "ppl_after" in plan.healing:
        yield _healing(plan.healing)


def _split(line: str) -> tuple[str, str]:
    what, _, value = line.rpartition(": ")
    return value, what


def _perplexity_cards(run: ModelRun, found: Sequence[Match]) -> Iterator[Card]:
    measured = False
    for match in found:
        for row in tables.perplexity_table(match).rows if match.before else ():
            text, before, after, change, *_ = (cell.text for cell in row)
            values = [each.partition(" ±")[0] for each in (before, after)]
            yield Card(f"perplexity, {text}", " → ".join(values), change)
            measured = True
    for each in run.summary.rows if run.summary else ():
        if each.name.startswith("perplexity"):
            name, before, after, change = figures(each)
            yield Card(name, f"{before} → {after}", change)
            measured = True
    calibration = tables.calibration_perplexities(run.plan) if run.plan and not measured else None
    if calibration:
        yield Card("perplexity, calibration text", " → ".join(calibration), "which also scored; before any healing")


def _healing(healing: Mapping[str, Any]) -> Card:
    tokens = f"{healing['tokens']:,} tokens"
    if not healing.get("step"):
        return Card("healing", "did not help", f"perplexity {tables.decimals(healing['ppl_before'])}, {tokens}")
    value = f"{tables.decimals(healing['ppl_before'])} → {tables.decimals(healing['ppl_after'])}"
    return Card("healing", value, f"perplexity on validation windows, {tokens}")


def _dialogues(run: ModelRun, found: Sequence[Match]) -> Iterator[list[Turn]]:
    for each in run.summary.answers if run.summary else ():
        answers = {"before": (each.before,), "after": (each.after,)}
        yield _turns(Dialogue((each.question,), answers), list(answers))
    for match in found:
        wanted = [each.model for each in (match.before, match.after) if each is not None]
        for dialogue in match.evaluation.answers:
            labels = wanted if set(wanted) <= set(dialogue.answers) else list(dialogue.answers)
            yield _turns(dialogue, labels)


def _turns(dialogue: Dialogue, labels: Sequence[str]) -> list[Turn]:
    columns = zip_longest(*(dialogue.answers[label] for label in labels), fillvalue="")
    return [
        (prompt, list(zip(labels, answers, strict=True)) if answers else [])
        for prompt, answers in zip_longest(dialogue.prompt, columns, fillvalue="")
    ]


def _names(rows: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(row.model for row in rows))


def _compared(rows: Sequence[Result]) -> ComparedModel:
    amounts = sorted({row.amount for row in rows if row.amount})
    of_each = [(amount, [row for row in rows if row.amount == amount]) for amount in amounts]
    maps = [
        (f"What went at {amount:.0%}", draw.removal_picture(own))
        for amount, own in of_each
        if any(row.removed for row in own)
    ]
    return ComparedModel(
        rows[0].model,
        list(tables.comparison_tables(rows)),
        list(draw.quality_figures(rows)) if amounts else [],
        maps,
        [*_ceilings(rows), *_correlation(rows)],
    )


def _ceilings(rows: Sequence[Result]) -> Iterator[str]:
    for text in rows[0].perplexities:
        if ceiling := draw.ceiling_of(rows, text):
            yield f"The pictures of {text} end at a perplexity of {number(ceiling)}; the tables have all."


def _correlation(rows: Sequence[Result]) -> Iterator[str]:
    if rows[0].tasks and len(rows) > 1:
        text = next(iter(rows[0].perplexities))
        correlation, count = rank_correlation(rows, text)
        over = f"mean accuracy, {count} rows"
        yield f"Rank correlation (Spearman) of perplexity on {text} with {over}: {correlation:.2f}."


def _evaluation_figures(evaluation: Evaluation) -> Iterator[Markup]:
    for text in evaluation.rows[0].perplexities:
        points = {
            row.model: (row.num_parameters / 1e6, row.perplexities[text].ppl)
            for row in evaluation.rows
            if text in row.perplexities
        }
        figure = draw.points_figure(points, "parameters (millions)", f"perplexity on {text}")
        if figure is not None:
            yield figure
