"""The last words of verbs: what came of it, and what may come next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lit_prune.files import say
from lit_prune.plan import PrunePlan, unseen_in_words
from lit_prune.searches import outcome_in_words

TOLERANCE = 1e-3
"""Shares that differ by less are shown as the same."""


def removed_in_words(plan: PrunePlan) -> Iterator[str]:
    """What went, and how much that is of what was asked for."""
    whole, gone = plan.model.num_parameters, plan.num_removed_parameters
    asked, reason = _asked(plan.budget)
    yield f"removed {', '.join(step.removed.name for step in plan.steps) or 'nothing'}"
    of = plan.budget.get("of", "params")
    yield f"parameters: {whole:,} -> {whole - gone:,} ({gone / whole:.1%} less{asked if of == 'params' else ''})"
    yield from outcome_in_words(plan.budget)
    yield from reason


def perplexity_in_words(plan: PrunePlan) -> Iterator[str]:
    """How much worse the model is: on unseen text, else on that which has decided."""
    for name, ppl, times in unseen_in_words(plan.unseen):
        yield f"perplexity on unseen {name}: {ppl} ({times})"
    losses = [loss for step in plan.steps for loss in (step.nll_before, step.nll_after)]
    if not plan.unseen and losses and losses[0] is not None and losses[-1] is not None:
        before, after = (math.exp(min(loss, 700.0)) for loss in (losses[0], losses[-1]))
        ahead = ", before that was made up for" if plan.compensation else ""
        yield f"perplexity on the calibration text: {before:,.2f} -> {after:,.2f} ({after / before:.2f} times{ahead})"


def _asked(budget: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The share that was asked for, and why another was reached."""
    amount, total, reached = budget.get("amount"), budget.get("total"), budget.get("reached")
    if amount is None or not total or reached is None:
        return "", []
    asked, share = f", {amount:.1%} asked for", reached / total
    if share > amount + TOLERANCE:
        return asked, ["more than asked for, since a whole sublayer is the smallest step"]
    if share < amount - TOLERANCE:
        why = "max_rise leaves no more" if budget.get("stopped_by") == "max_rise" else budget.get("stopped_by") or ""
        return asked, [f"less than asked for: {why}" if why else "less than asked for"]
    return asked, []


def what_next(folder: str, dense: str) -> dict[str, Sequence[str]]:
    """Commands for a pruned model that may come next, by what each is for."""
    return {
        "get back what was lost": ["heal", folder, "--output", f"{folder.rstrip('/')}-healed"],
        "talk to it": ["chat", folder, *(["--against", dense] if dense else [])],
        "see what went, on one page": ["report", folder],
    }


def say_next(commands: Mapping[str, Iterable[str]]) -> None:
    """Name commands that may come next, by what each is for: the words behind `lit-prune`."""
    lines = {purpose: shlex.join(["lit-prune", *words]) for purpose, words in commands.items()}
    width = max(map(len, lines.values()))
    say("\n".join(["next:", *(f"  {line:<{width}}  # {purpose}" for purpose, line in lines.items())]))
