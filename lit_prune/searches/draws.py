"""One search on several draws of the text, and the set that is best on text that none of them saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from lit_prune.errors import DataError, LitPruneError
from lit_prune.plan import Candidate, Named, Scores, create
from lit_prune.searches.inside import Part, grown
from lit_prune.searches.order import SEARCHES, Round
from lit_prune.searches.set_losses import SetLosses
from lit_prune.searches.whole import WholeSet


@SEARCHES.register("draws")
@dataclass(frozen=True)
class Draws(WholeSet):
    """Another search several times, each time on batches of its own.

    A greedy search ends with another set on other text. Of the sets that are found, the one with the lowest loss on
    the `held_out` batches is taken. How many of the draws a candidate was chosen in says how sure its removal is.

    Args:
        of: The search, as a name or a mapping with its options.
        number: Number of draws; the batches that are not held out are shared among them.
        held_out: Share of the batches that judge, the last of them.

    Raises:
        LitPruneError: There are fewer than 2 draws, or the share is not above 0 and below 1.
    """

    of: Named = "lazy"
    number: int = 8
    held_out: float = 0.25
    _inner: Callable[..., Scores] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.number < 2:
            raise LitPruneError(f"number is 2 draws or more; found {self.number}")
        if not 0 < self.held_out < 1:
            raise LitPruneError(f"held_out is a share above 0 and below 1; found {self.held_out}")
        object.__setattr__(self, "_inner", create(SEARCHES, self.of))

    def decide(self, score: Round, candidates: Sequence[Candidate]) -> Scores:
        """The best of the sets, with how often candidates were chosen."""
        num_searching = score.num_batches - self.num_held_out(score.num_batches)
        if num_searching < self.number:
            raise DataError(
                f"{self.number} draws need a batch each, and {num_searching} are left to search on; give more windows, "
                "or smaller batches"
            )
        borders = [draw * num_searching // self.number for draw in range(self.number + 1)]
        found = [frozenset(grown(self._inner, Part(score, range(*ends)), candidates)) for ends in pairwise(borders)]
        ordered = sorted(candidates)
        losses, judging = SetLosses(score, ordered), range(num_searching, score.num_batches)
        sets = [np.array([candidate in members for candidate in ordered]) for members in dict.fromkeys(found)]
        losses.measure(sets, judging)
        best = min(sets, key=lambda each: (losses.mean(each, judging), each.tobytes()))
        counts = Counter(candidate for members in found for candidate in members)
        return Scores(
            dict.fromkeys(losses.members(best), losses.mean(best, judging)),
            chosen={candidate: counts[candidate] / self.number for candidate in ordered},
        )
