"""How much worse a model got on text that decided nothing: what a plan says of it, with its error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

NORMAL = 1.959964
"""Standard errors of a normal distribution that 95 % of it are within."""
UNSEEN_KINDS = {"num_windows": int, "num_tokens": int, "nll_before": float, "nll_after": float, "error": float | None}
"""What a plan holds of every text: see `PrunePlan.unseen`."""


def error_of_ratio(squares: float, number: float, total: float) -> float:
    """Standard error of a ratio of sums over units, such as a mean token loss over sequences; infinite of one unit.

    By linearisation: Cochran, Sampling Techniques, 1977, 6.3. What is compared on the same units has the difference's
    residuals, so that only how the two differ counts.

    Args:
        squares: Sum of the squared residuals: a unit's loss less the mean times its tokens.
        number: Number of units.
        total: Sum of what the ratio divides by, such as all tokens.
    """
    return math.sqrt(squares * number / (number - 1)) / total if number > 1 else math.inf


def interval_of(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of a text's rise of the mean token loss (nats), by Student's t; None of fewer than 4 windows.

    Example:
        >>> row = {"num_windows": 11, "nll_before": 3.0, "nll_after": 3.5, "error": 0.1}
        >>> [round(end, 4) for end in interval_of(row)]
        [0.2772, 0.7228]
    """
    quantile, error = quantile_of_t(row["num_windows"] - 1), row["error"]
    if quantile is None or error is None:
        return None
    width = error * quantile
    rise = row["nll_after"] - row["nll_before"]
    return rise - width, rise + width


def quantile_of_t(degrees: int) -> float | None:
    """Standard errors that 95 % of Student's t distribution is within, by its degrees of freedom; None of fewer than 3.

    That of the normal distribution and its corrections (Abramowitz and Stegun, Handbook of Mathematical Functions,
    26.7.5).

    Example:
        >>> round(quantile_of_t(10), 3)
        2.228
    """
    if degrees < 3:
        return None
    z = NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def unseen_in_words(unseen: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Of every text its name, the perplexity before and after, and how many times that is, with the 95 % interval.

    Example:
        >>> row = {"num_windows": 11, "nll_before": 3.0, "nll_after": 3.5, "error": 0.1}
        >>> list(unseen_in_words({"prose": row}))
        [('prose', '20.09 -> 33.12', '1.65 times, 95 % interval 1.32 to 2.06')]
    """
    for name, row in unseen.items():
        before, after = row["nll_before"], row["nll_after"]
        times, interval = f"{_exp(after - before):.2f} times", interval_of(row)
        if interval is not None:
            times += f", 95 % interval {_exp(interval[0]):.2f} to {_exp(interval[1]):.2f}"
        yield name, f"{_exp(before):,.2f} -> {_exp(after):,.2f}", times


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf
