"""The summary of a run as plain text, cell by cell: figures before and after, what went, how it was found.

How it looks is `markdown.py`'s and `screen.py`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lit_prune.measure import perplexity_of
from lit_prune.plan import PrunePlan, PruneStep

TIMES = ("s", "ms", "us", "ns", "min", "h")
FIGURES = ("", "before", "after", "change")
REMOVALS = ("epoch", "removed", "score", "parameters", "left", "ppl before", "ppl after")
LEFT_ALIGNED = ("", "removed")
EMPTY = "(nothing)"


@dataclass(frozen=True)
class Row:
    """One figure before and after.

    Attributes:
        name: What was measured.
        before: Of the dense model, None where it was not measured.
        after: Of the pruned model, None where it was not measured.
        unit: Such as `ms`; times also get a ratio.
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


def title(plan: PrunePlan) -> str:
    """What the page is about."""
    return f"{plan.model.name or plan.model.model_type}, before and after pruning"


def figures(row: Row) -> list[str]:
    """The cells of one row of `FIGURES`."""
    return [row.name, number(row.before, row.unit), number(row.after, row.unit), _change(row)]


def number(value: float | int | None, unit: str = "") -> str:
    """Whole numbers in full, others with four digits.

    Example:
        >>> number(134515008), number(12.34567, "ms"), number(98765.4), number(None)
        ('134,515,008', '12.35 ms', '98,765', 'n/a')
    """
    if value is None:
        return "n/a"
    whole = isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1000)
    text = f"{value:,.0f}" if whole else f"{value:.4g}"
    return f"{text} {unit}" if unit else text


def _change(row: Row) -> str:
    """The change in percent, with a ratio for times and a word where one direction is good.

    Example:
        >>> _change(Row("prefill", 56.0, 50.0, unit="ms", better="lower"))
        '-10.7% (1.12x faster)'
    """
    if not row.before or row.after is None or not math.isfinite(row.before) or not math.isfinite(row.after):
        return ""
    percent = f"{(row.after - row.before) / abs(row.before):+.1%}"
    remark = _ratio(row.before, row.after) if row.unit in TIMES else verdict(row)
    return f"{percent} ({remark})" if remark else percent


def _ratio(before: float, after: float) -> str:
    if before <= 0 or after <= 0 or before == after:
        return ""
    return f"{before / after:.2f}x faster" if after < before else f"{after / before:.2f}x slower"


def verdict(row: Row) -> str:
    """`better`, `worse`, or nothing where neither can be said."""
    if row.better is None or row.before is None or row.after is None or row.before == row.after:
        return ""
    return "better" if (row.after < row.before) == (row.better == "lower") else "worse"


def outcome(plan: PrunePlan) -> str:
    """How much went, in one sentence."""
    if not plan.steps:
        return "Nothing was removed."
    gone, all_of_it = plan.num_removed_parameters, plan.model.num_parameters
    removals_made = "1 removal" if len(plan.steps) == 1 else f"{len(plan.steps)} removals"
    return f"{removals_made}, {gone:,} of {all_of_it:,} parameters ({gone / all_of_it:.1%})"


def disturbance(plan: PrunePlan) -> str:
    """How often a search that spares itself work was surprised."""
    return f"Order disturbed: in {plan.num_disturbed} of {len(plan.steps)} rounds"


def removals(plan: PrunePlan) -> tuple[tuple[str, ...], list[list[str]]]:
    """Heads and cells of what was removed; epochs only where there was training."""
    left, cells = plan.model.num_parameters, []
    for step in plan.steps:
        left -= step.num_parameters
        cells.append(_removal(step, left / plan.model.num_parameters))
    if all(step.epoch is None for step in plan.steps):
        return REMOVALS[1:], [each[1:] for each in cells]
    return REMOVALS, cells


def _removal(step: PruneStep, left: float) -> list[str]:
    epoch = "" if step.epoch is None else str(step.epoch)
    losses = [number(None if nll is None else perplexity_of(nll)) for nll in (step.nll_before, step.nll_after)]
    return [epoch, step.removed.name, number(step.score), f"{step.num_parameters:,}", f"{left:.1%}", *losses]


def facts(plan: PrunePlan) -> Iterator[str]:
    """How the removals were found, what that cost, and with which versions."""
    yield f"Search: {_described(plan.search)}; scorer: {_described(plan.scorer)}"
    yield f"Cost of the search: {plan.cost:,.1f} dense forward passes over the calibration tokens"
    if plan.num_disturbed is not None:
        yield disturbance(plan)
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
