"""Which rows of a comparison differ by more than chance gives in 95 of 100 cases."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from lit_prune.evaluation.measured import exceeds_error
from lit_prune.evaluation.results import Result
from lit_prune.measure import perplexity_of
from lit_prune.plan import interval_of, quantile_of_t


def apart_by_perplexity(rows: Sequence[Result], text: str, one: Result, other: Result) -> bool:
    """Whether two methods differ by more than chance in perplexity on a text.

    With several draws by the paired differences of its logarithm over draws, by Student's t (four draws or more), else
    by those of the windows, which both were measured on. Where neither is known they count as apart.
    """
    logs, others = (_of_draws(rows, row, text) for row in (one, other))
    draws = sorted(logs.keys() & others.keys())
    if len(draws) > 1:
        differences = [logs[draw] - others[draw] for draw in draws]
        quantile = quantile_of_t(len(draws) - 1)
        error = statistics.stdev(differences) / math.sqrt(len(draws))
        return quantile is not None and abs(statistics.fmean(differences)) > quantile * error
    if text in one.losses and text in other.losses:
        error_of_rise = one.losses[text].error_of_rise(other.losses[text])
        if error_of_rise is not None:
            return exceeds_error(one.losses[text].nll - other.losses[text].nll, error_of_rise)
    return True


def perplexity_interval(dense: Result, row: Result, text: str) -> tuple[float, float] | None:
    """From what to what a perplexity is in 95 of 100 cases, that of the dense model given: paired over windows.

    None of fewer than four windows, or where they are not the dense model's.
    """
    if text not in row.losses or text not in dense.losses:
        return None
    before, after = dense.losses[text], row.losses[text]
    ends = interval_of(
        {
            "num_windows": after.num_windows,
            "nll_before": before.nll,
            "nll_after": after.nll,
            "error": after.error_of_rise(before),
        }
    )
    return None if ends is None else (perplexity_of(before.nll + ends[0]), perplexity_of(before.nll + ends[1]))


def apart_by_task(task: str, one: Result, other: Result) -> bool:
    """Whether two methods differ by more than chance on the same items of a task; where these are not known they do."""
    scores = [row.tasks.get(task) for row in (one, other)]
    if scores[0] is None or scores[1] is None:
        return True
    error = scores[0].error_of_rise(scores[1])
    return error is None or exceeds_error(scores[0].value - scores[1].value, error)


def apart_by_speed(phase: str, one: Result, other: Result) -> bool:
    """Whether the intervals of two speeds, `prefill` or `decode`, have nothing in common; unknown ones have not."""
    if phase not in one.speed_intervals or phase not in other.speed_intervals:
        return True
    (low, high), (lower, higher) = one.speed_intervals[phase], other.speed_intervals[phase]
    return high < lower or higher < low


def _of_draws(rows: Sequence[Result], row: Result, text: str) -> dict[int, float]:
    kind = (row.model, row.label, row.amount)
    own = [each for each in rows if (each.model, each.label, each.amount) == kind and text in each.perplexities]
    return {each.draw: math.log(each.perplexities[text]) for each in own}
