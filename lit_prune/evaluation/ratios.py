"""How many times as fast one model is as another, with an interval, from seconds that were measured in turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

TAIL = 0.025
"""Chance that a median lies below its interval, and above it."""


@dataclass(frozen=True)
class Speedup:
    """How many times as fast one model is as another: the median of the ratios of readings in the same turn.

    The interval from low to high holds the true median in 95 of 100 cases; with too few readings it is their range.
    """

    ratio: float
    low: float
    high: float


def speedup(before: Sequence[float], after: Sequence[float]) -> Speedup:
    """Compare two models by seconds that were measured in the same turns, as `Speed` holds them.

    The interval is that of order statistics, which asks nothing of how readings are distributed.

    Example:
        >>> speedup([4.0, 2.0, 6.0], [2.0, 2.0, 2.0])
        Speedup(ratio=2.0, low=1.0, high=3.0)
    """
    ratios = sorted(first / second for first, second in zip(before, after, strict=True))
    number, rank, tail = len(ratios), 0, 0.0
    # The chance that the median lies below the ratio of this rank, counted from 0.
    while tail + (below := math.comb(number, rank) / 2**number) <= TAIL:
        tail, rank = tail + below, rank + 1
    edge = max(rank - 1, 0)
    return Speedup(statistics.median(ratios), ratios[edge], ratios[number - 1 - edge])
