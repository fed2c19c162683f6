"""How much faster a model writes with its pruned self as the draft, predicted for every size that a plan holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lit_prune.anatomy import find_sublayers
from lit_prune.costs import measure_passes, price
from lit_prune.errors import LitPruneError
from lit_prune.measure import AGREEMENTS, Divergence, Progress, Runner, WhatIf
from lit_prune.plan import Candidate, PrunePlan
from lit_prune.pruning import front_of

MOST_TOKENS = 12
"""Tokens that a draft is thought to write at a time, at most."""


@dataclass(frozen=True)
class Forecast:
    """What a draft without the first removals of a plan is expected to bring.

    Attributes:
        num_steps: How many of the plan's removals it is without.
        share: The share of the parameters that it lacks.
        acceptance: How likely it is that the model accepts a token of the draft, where it accepted those before it.
        draft_time: Time of one step of the draft, in steps of the model.
        num_tokens: Tokens to draft at a time, the best number.
        speedup: How many times as many tokens a second are expected then.
        ideal: The same where a pass over several tokens takes no longer than one over a single token, each at its own
            best number.
    """

    num_steps: int
    share: float
    acceptance: float
    draft_time: float
    num_tokens: int
    speedup: float
    ideal: float


def predicted_speedup(acceptance: float, num_tokens: int, draft_time: float, pass_time: float = 1.0) -> float:
    """How many times as many tokens a second a model writes with a draft (Leviathan et al. 2023, arXiv 2211.17192).

    A pass brings 1 + a + ... + a^n = (1 - a^(n + 1)) / (1 - a) tokens and takes n draft steps and itself: theorem 3.8,
    where `pass_time` is 1.

    Args:
        acceptance: Chance a that a drafted token is accepted, from 0 to 1.
        num_tokens: Tokens n that are drafted at a time.
        draft_time: Time of one step of the draft, in steps of the model.
        pass_time: Time of the model's pass over n + 1 tokens, likewise.

    Example:
        >>> round(predicted_speedup(0.8, 5, 0.1), 3)
        2.46
    """
    return sum(acceptance**number for number in range(num_tokens + 1)) / (num_tokens * draft_time + pass_time)


def forecasts(
    plan: PrunePlan,
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    agreement: str = "greedy",
    progress: Progress | None = None,
) -> list[Forecast]:
    """Predict what each front of a plan brings as the draft of the model that it was made for.

    Acceptance is measured on the text, beside the model as it is: one pass for each front, less the blocks ahead of the
    first removal. Times are measured on the model's device, for one text as long as the longest sequence: of the
    sublayers as `of="latency"` does, and of passes over several tokens.

    Args:
        plan: A plan whose removals are in the order in which they were found.
        model: An unpruned copy of its model, which is not changed.
        batches: Dicts with `input_ids` [batch, seq], best of text that the plan was not searched on.
        agreement: `greedy` or `sampling`, as of the scorer `acceptance`.
        progress: See `WhatIf`.

    Raises:
        LitPruneError: There is no such agreement, nothing goes in the plan, its set was decided as a whole, or it does
            not fit the model.
    """
    if agreement not in AGREEMENTS:
        raise LitPruneError(f"agreement must be one of {', '.join(AGREEMENTS)}; found {agreement!r}")
    if not plan.steps:
        raise LitPruneError("the plan removes nothing, and a draft that is the model itself saves no time")
    anatomy = find_sublayers(model)
    plan.model.require_same(anatomy.facts())
    front_of(plan, model, num_steps=1)  # refuses a set that has no fronts
    gone = [step.removed for step in plan.steps]
    fronts = [Candidate.together(gone[:number]) for number in range(1, len(gone) + 1)]
    what_if = WhatIf(model, list(batches), progress=progress, runner=Runner(Divergence(AGREEMENTS[agreement])))
    refused = what_if.losses(fronts).without
    positions = what_if.num_positions
    prices = price(model, "latency", num_positions=positions)
    pass_times = measure_passes(model, length=positions, most_tokens=MOST_TOKENS + 1)[1:]
    found = []
    for number, front in enumerate(fronts, start=1):
        share = anatomy.num_freed(front.sublayers) / anatomy.num_parameters
        draft_time = max(0.0, 1 - prices.freed(anatomy, front.sublayers) / prices.total)
        found.append(_forecast(number, share, 1 - refused[front], draft_time, pass_times))
    return found


def _forecast(
    num_steps: int, share: float, acceptance: float, draft_time: float, pass_times: Sequence[float]
) -> Forecast:
    by_length = {
        number: predicted_speedup(acceptance, number, draft_time, pass_time)
        for number, pass_time in enumerate(pass_times, start=1)
    }
    best = max(by_length, key=by_length.__getitem__)
    ideal = max(predicted_speedup(acceptance, number, draft_time) for number in by_length)
    return Forecast(num_steps, share, acceptance, draft_time, best, by_length[best], ideal)
