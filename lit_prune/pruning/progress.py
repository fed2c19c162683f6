"""A progress bar for searches: how much of the budget is reached, what is being measured, how long it will take."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lit_prune.files import INTERVAL, open_bar, time_left

if TYPE_CHECKING:
    from lit_prune.pruning.expected import ExpectedSearch

LONGEST = 40
"""The most letters of what is being measured: a set of many sublayers has a long name."""


class SearchBar:
    """A bar that is full when the budget is reached; only what was removed moves it.

    A search may ask for thousands of blocks at once or for a few, so blocks say nothing about how far it is.
    """

    def __init__(
        self, bar: Any, goal: float, reached: float, clock: Callable[[], float], *, in_one: bool = False
    ) -> None:
        self._in_one = in_one
        self._bar = bar
        self._goal = goal
        self._clock = clock
        self._round = 1
        self._measured = False
        self._marks = [(clock(), reached)]  # the beginning, and every removal since then
        self._drawn = -math.inf
        self._sweep = (clock(), 0)  # when the one that runs now began, and how many blocks it has
        self._begun: float | None = None  # when the first block was to run
        self._ran, self._expected = 0, math.inf  # blocks that ran in sweeps before this one, and in all of the search
        self._done = 0  # those of this sweep

    def foresee(self, expected: ExpectedSearch | None, num_batches: int) -> None:
        """Say what a search on so many batches is expected to take, where that can be told.

        Until the first removal, the time left is then that of all of it.
        """
        if expected is None:
            return
        self._expected = expected.block_evaluations * num_batches
        if not self._bar.disable:
            passes = f"{expected.dense_passes:,.0f} dense passes over its text"
            self._bar.write(f"{self._bar.desc}: about {passes} are expected", sys.stderr)

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` blocks of a sweep were evaluated, and what is being measured."""
        self._measured |= total > 0
        if self._begun is None and total:
            self._begun = self._clock()
        if not done or total != self._sweep[1]:
            self._ran += self._done
            self._sweep = (self._clock(), total)
        self._done = done
        if self._in_one:
            self._goal, self._marks = 1.0, [self._marks[0], (self._clock(), done / total if total else 0.0)]
        if self._clock() - self._drawn < INTERVAL:
            return
        self._drawn = self._clock()
        sweep = f"{done / total:.0%} of a sweep" if total else ""
        without = f"{'' if self._in_one else 'without '}{what[:LONGEST]}" if what else ""
        seconds = self.seconds_left
        left = self._sweep_left(done) if seconds is None else time_left(seconds)
        turn = "" if self._in_one else f"round {self._round}"
        self._bar.set_postfix_str(", ".join(filter(None, (turn, sweep, without, left))))

    def removed(self, reached: float) -> None:
        """Show that a removal is done, and what all of them have reached."""
        mark = (self._clock(), reached)
        # A journal's rounds take no time, and say nothing about those to come.
        self._marks = [*self._marks, mark] if self._measured else [mark]
        self._round += 1
        self._bar.update(min(reached, self._goal) - self._bar.n)

    def _sweep_left(self, done: int) -> str:
        """How long all will take yet, by what is expected, or else the sweep: nothing tells how many there will be."""
        ran = self._ran + done
        if self._begun is not None and 0 < ran < self._expected < math.inf:
            return time_left((self._clock() - self._begun) * (self._expected - ran) / ran)
        begun, total = self._sweep
        return f"{time_left((self._clock() - begun) * (total - done) / done)} of it" if 0 < done < total else ""

    @property
    def seconds_left(self) -> float | None:
        """The time left, by what was reached per second; None before the first removal, and where the goal is unknown.

        The first round counts only until there is a second: for some searches it is the dearest by far.
        """
        (begun, before), (last, now) = self._marks[1 if len(self._marks) > 2 else 0], self._marks[-1]
        if now <= before or math.isinf(self._goal):
            return None
        seconds = (self._goal - now) * (last - begun) / (now - before)
        return max(0.0, seconds - (self._clock() - last))


@contextmanager
def progress_bar(
    description: str,
    *,
    goal: float = math.inf,
    reached: float = 0,
    shown: bool = True,
    clock: Callable[[], float] = time.monotonic,
    in_one: bool = False,
) -> Iterator[SearchBar]:
    """A bar on the error stream that follows a search, and shows what it measures; nothing at all when not `shown`.

    Args:
        description: The words before the bar.
        goal: The amount that is to be reached, in the budget's unit or in removals; infinite where nobody knows it.
        reached: The part of it that was reached before.
        shown: Whether the bar is drawn.
        clock: Reads the time in seconds.
        in_one: Whether all there is to do is one sweep, which is not the first of several rounds.
    """
    total = goal if math.isfinite(goal) else None
    with open_bar(description, total=total, reached=reached, shown=shown) as bar:
        yield SearchBar(bar, goal, reached, clock, in_one=in_one)
