"""The summary of a run: figures before and after, what went and how it was found; Markdown, JSON, or on the screen."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from lit_prune.errors import DataError
from lit_prune.files import markdown_inline, markdown_line, markdown_quote, read_json, record_of, write_json
from lit_prune.measure import perplexity_of
from lit_prune.plan import PrunePlan, PruneStep, unseen_in_words
from lit_prune.report.pieces import EMPTY, Cell, Screen, Table, number

TIMES = ("s", "ms", "us", "ns", "min", "h")
FIGURES = ("", "before", "after", "change")
REMOVALS = ("epoch", "removed", "score", "parameters", "left", "ppl before", "ppl after")
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Row:
    """One figure of the dense model and of the pruned one, None where it was not measured.

    Attributes:
        unit: The unit, such as `ms`; times also get a ratio.
        better: Which direction is good, None where neither is.
    """

    name: str
    before: float | int | None
    after: float | int | None
    unit: str = ""
    better: Literal["lower", "higher"] | None = None


@dataclass(frozen=True)
class Answer:
    """What a model answered to one question, before and after."""

    question: str
    before: str
    after: str


@dataclass(frozen=True)
class Summary:
    """What was measured before and after a run, what was removed, and sentences for the reader."""

    rows: Sequence[Row]
    plan: PrunePlan
    answers: Sequence[Answer] = ()
    notes: Sequence[str] = ()


def summary_markdown(summary: Summary) -> str:
    """Write the summary as one Markdown page; answers are quotes, each line escaped."""
    return "\n\n".join(_sections(summary)) + "\n"


def print_summary(summary: Summary) -> None:
    """Show on the screen what `summary_markdown` writes."""
    screen, plan = Screen(), summary.plan
    screen.say(f"{base_of(plan)}, before and after pruning", "bold")
    if summary.rows:
        screen.show(figures_table(summary.rows))
    screen.say(_outcome(plan), "bold")
    if plan.steps:
        screen.show(_removals(plan))
    for fact in _facts(plan):
        screen.say(fact)
    for answer in summary.answers:
        screen.say(f"\n{answer.question}", "bold")
        screen.quote("before", answer.before)
        screen.quote("after", answer.after)
    for note in summary.notes:
        screen.say(note)


def save_summary(folder: str | Path, summary: Summary) -> Path:
    """Write the summary, unrounded, as `summary.json` into the folder of a run, and return the file."""
    figures, answers = [asdict(row) for row in summary.rows], [asdict(answer) for answer in summary.answers]
    data = {"figures": figures, "answers": answers, "notes": list(summary.notes), "plan": summary.plan.to_dict()}
    return write_json(Path(folder) / SUMMARY_FILE, data)


def read_summary(path: str | Path) -> Summary:
    """Read the file that `save_summary` wrote.

    Raises:
        DataError: The file cannot be read, or is damaged.
        PlanError: The plan in it is damaged.
    """
    try:
        data = read_json(Path(path).read_text(encoding="utf-8"))
        rows = tuple(record_of(Row, row) for row in data["figures"])
        answers = tuple(record_of(Answer, answer) for answer in data["answers"])
        return Summary(rows, PrunePlan.from_dict(data["plan"]), answers, tuple(map(str, data["notes"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read the summary {path}: {error!r}") from error


def plan_markdown(plan: PrunePlan) -> str:
    """Write the removals of a plan as a Markdown table."""
    return _removals(plan).markdown


def answer_markdown(answer: Answer) -> str:
    """Write one question and what was answered before and after, as quotes that nothing in them can end."""
    before, after = (markdown_quote(text, EMPTY) for text in (answer.before, answer.after))
    return f"**{markdown_inline(answer.question)}**\n\nBefore:\n\n{before}\n\nAfter:\n\n{after}"


def ties(plan: PrunePlan) -> str:
    """Say how often the calibration text did not decide which candidate goes."""
    rounds = f"{plan.num_ties} of {len(plan.steps)} rounds"
    return f"Within one standard error of the lowest score were others too, so that chance chose, in {rounds}"


def chosen_among(plan: PrunePlan) -> str:
    """Say what the shares are of in which a search has chosen its candidates."""
    return "the draws of the text" if plan.search.get("name") == "draws" else "the sets that text does not tell apart"


def draws_in_words(plan: PrunePlan) -> str | None:
    """Say which removals other draws of the text, or sets as good, agree with; None where there are none."""
    shares = plan.steps[0].chosen if plan.steps else {}
    named = [(step.removed.name, shares[step.removed.name]) for step in plan.steps if step.removed.name in shares]
    if not named:
        return None
    ordered = sorted(named, key=lambda pair: -pair[1])
    return f"Chosen in so many of {chosen_among(plan)}: {', '.join(f'{name} {share:.0%}' for name, share in ordered)}"


def made_up_for(plan: PrunePlan) -> str:
    """Say what was changed in weights that stay, or why nothing was."""
    facts = plan.compensation
    if "impossible" in facts:
        return f"Not made up for in weights that stay: {facts['impossible']}"
    fits = facts.get("refitted")
    if not isinstance(fits, Mapping):
        return f"Made up for in weights that stay: {facts['name']}"
    changed = sum(isinstance(fit, Mapping) and bool(fit.get("ridge")) for fit in fits.values())
    names = facts.get("left")
    left = f"; left as they are: {', '.join(names)}" if isinstance(names, Mapping) else ""
    passes = f" in {facts['cost']:.1f} passes" if isinstance(facts.get("cost"), int | float) else ""
    return f"Made up for in weights that stay: {changed} of {len(fits)} output projections refitted{passes}{left}"


def figures_table(rows: Sequence[Row]) -> Table:
    """Figures before and after, a row of `FIGURES` each."""
    return Table.of(FIGURES, [[*figures_of(row)[:-1], Cell(_change(row), verdict=_verdict(row))] for row in rows])


def figures_of(row: Row) -> tuple[str, str, str, str]:
    """The texts of one row of `FIGURES`."""
    return row.name, number(row.before, row.unit), number(row.after, row.unit), _change(row)


def _sections(summary: Summary) -> Iterator[str]:
    plan = summary.plan
    yield f"# {markdown_inline(f'{base_of(plan)}, before and after pruning')}"
    if summary.rows:
        yield figures_table(summary.rows).markdown
    yield f"## What was removed\n\n{markdown_inline(_outcome(plan))}"
    if plan.steps:
        yield plan_markdown(plan)
    yield f"## How it was found\n\n{_list(_facts(plan))}"
    if summary.answers:
        yield "## Answers"
    yield from map(answer_markdown, summary.answers)
    if summary.notes:
        yield f"## Notes\n\n{_list(summary.notes)}"


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_line(sentence)}" for sentence in sentences)


def base_of(plan: PrunePlan) -> str:
    """What the model was before, in words."""
    return plan.model.name or plan.model.model_type


def _change(row: Row) -> str:
    """The change in percent, with a ratio for times and a word where one direction is good.

    Example:
        >>> _change(Row("prefill", 56.0, 50.0, unit="ms", better="lower"))
        '-10.7% (1.12x faster)'
    """
    if not row.before or row.after is None or not math.isfinite(row.before) or not math.isfinite(row.after):
        return ""
    percent, remark = f"{(row.after - row.before) / abs(row.before):+.1%}", _verdict(row)
    if row.unit in TIMES:
        low, high = sorted((row.before, row.after))
        remark = "" if low <= 0 or low == high else f"{high / low:.2f}x {'faster' if low == row.after else 'slower'}"
    return f"{percent} ({remark})" if remark else percent


def _verdict(row: Row) -> str:
    if row.better is None or row.before is None or row.after is None or row.before == row.after:
        return ""
    return "better" if (row.after < row.before) == (row.better == "lower") else "worse"


def _outcome(plan: PrunePlan) -> str:
    if not plan.steps:
        return "Nothing was removed."
    gone, whole = plan.num_removed_parameters, plan.model.num_parameters
    removals = "1 removal" if len(plan.steps) == 1 else f"{len(plan.steps)} removals"
    return f"{removals}, {gone:,} of {whole:,} parameters ({gone / whole:.1%})"


def shares_left(plan: PrunePlan) -> list[float]:
    """The share of the parameters that is left: of the whole model, which is 1, and after each removal."""
    whole = plan.model.num_parameters
    left = accumulate((step.num_parameters for step in plan.steps), operator.sub, initial=whole)
    return [num_parameters / whole for num_parameters in left]


def _removals(plan: PrunePlan) -> Table:
    """A row for each removal; epochs only where there was training."""
    rows = [_removal(step, left) for step, left in zip(plan.steps, shares_left(plan)[1:], strict=True)]
    first = 1 if all(step.epoch is None for step in plan.steps) else 0
    return Table.of(REMOVALS[first:], [row[first:] for row in rows], words=["removed"])


def _removal(step: PruneStep, left: float) -> list[str]:
    epoch = "" if step.epoch is None else str(step.epoch)
    losses = [number(None if nll is None else perplexity_of(nll)) for nll in (step.nll_before, step.nll_after)]
    return [epoch, step.removed.name, number(step.score), f"{step.num_parameters:,}", f"{left:.1%}", *losses]


def _facts(plan: PrunePlan) -> Iterator[str]:
    """How the removals were found, what that cost, and with which versions."""
    yield f"Search: {_described(plan.search)}; scorer: {_described(plan.scorer)}"
    yield f"Cost of the search: {plan.cost:,.1f} dense forward passes over the calibration tokens"
    if plan.num_ties is not None:
        yield ties(plan)
    if draws := draws_in_words(plan):
        yield draws
    if plan.compensation:
        yield made_up_for(plan)
    for name, perplexities, times in unseen_in_words(plan.unseen):
        yield f"Perplexity on {name}, text that decided nothing: {perplexities}, ahead of any healing ({times})"
    if plan.calibration:
        yield f"Calibration: {_described(plan.calibration)}"
    if plan.versions:
        yield f"Made with: {', '.join(f'{name} {version}' for name, version in plan.versions.items())}"
    if any(step.nll_before is not None for step in plan.steps):
        yield "ppl: perplexity on the calibration tokens, just before and just after the removal, ahead of any training"


def _described(settings: Mapping[str, Any]) -> str:
    """A setting's name or source, then the rest in brackets."""
    rest = {name.replace("_", " "): _setting(value) for name, value in settings.items()}
    head = rest.pop("name", None) or rest.pop("source", None)
    listed = ", ".join(f"{name}: {value}" for name, value in rest.items())
    return f"{head} ({listed})" if head and listed else head or listed or "n/a"


def _setting(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    # A digest is to be recognised, not read.
    return f"{value[:12]}..." if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,}", value) else str(value)
