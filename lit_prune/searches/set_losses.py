"""Losses of whole sets over batches, of which only those that are missing are measured; differences are paired."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lit_prune.plan import Candidate, error_of_ratio
from lit_prune.searches.order import Floats, Round

Set = NDArray[np.bool_]
"""Which of some candidates are out, [candidates]."""


class SetLosses:
    """What was measured of sets of candidates, sequence by sequence.

    Args:
        score: The round that measures.
        candidates: The candidates that sets are made of.
    """

    def __init__(self, score: Round, candidates: Sequence[Candidate]) -> None:
        self._score, self._candidates = score, candidates
        self._known: dict[bytes, dict[int, Floats]] = {}  # loss sums of sequences, by set and batch
        self._tokens: dict[int, Floats] = {}

    def members(self, chosen: Set) -> list[Candidate]:
        """The candidates of a set."""
        return [candidate for candidate, out in zip(self._candidates, chosen, strict=True) if out]

    def measure(self, sets: Sequence[Set], batches: range) -> None:
        """Measure sets on those batches that they were not measured on."""
        for batch in batches:
            missing = [each for each in sets if batch not in self._known.get(each.tobytes(), {})]
            if not missing:
                continue
            named = {Candidate.together(self.members(each)): each for each in missing}
            found = self._score.losses(list(named), range(batch, batch + 1))
            self._tokens[batch] = found.tokens[batch]
            for candidate, each in named.items():
                self._known.setdefault(each.tobytes(), {})[batch] = found.without[candidate][batch]

    def measure_around(self, chosen: Set, batches: range) -> list[Set]:
        """Measure the sets that differ from one by a candidate, which are returned by candidate."""
        changed = [chosen ^ (np.arange(len(chosen)) == place) for place in range(len(chosen))]
        self.measure([chosen, *(each for each, back in zip(changed, chosen, strict=True) if back)], batches)
        more = {each: changed[place] for place, each in enumerate(self._candidates) if not chosen[place]}
        for batch in batches:
            missing = [each for each, own in more.items() if batch not in self._known.get(own.tobytes(), {})]
            # As if the set were gone already, which spares the blocks in front of the candidate.
            found = self._score.losses(missing, range(batch, batch + 1), without=self.members(chosen))
            for each in missing:
                self._known.setdefault(more[each].tobytes(), {})[batch] = found.without[each][batch]
        return changed

    def mean(self, chosen: Set, batches: Iterable[int]) -> float:
        """The mean loss of a token without a set, in nats."""
        batches, sums = list(batches), self._known[chosen.tobytes()]
        return float(sum(sums[batch].sum() for batch in batches) / sum(self._tokens[batch].sum() for batch in batches))

    def behind(self, chosen: Set, best: Set, batches: Iterable[int]) -> tuple[float, float]:
        """How far the mean loss without a set is above that without another, and the standard error of that.

        The error is that of a ratio of sums over sequences; infinite of one sequence.
        """
        batches = list(batches)
        one, other = self._known[chosen.tobytes()], self._known[best.tobytes()]
        difference = np.concatenate([one[batch] - other[batch] for batch in batches])
        tokens = np.concatenate([self._tokens[batch] for batch in batches])
        mean, number = float(difference.sum() / tokens.sum()), len(tokens)
        squares = float(((difference - mean * tokens) ** 2).sum())
        return mean, error_of_ratio(squares, number, float(tokens.sum()))

    def are_tied(self, chosen: Set, best: Set, batches: Iterable[int], *, errors: float) -> bool:
        """Whether a set is at most so many standard errors behind another, on the batches that it was measured on."""
        mean, error = self.behind(chosen, best, [batch for batch in batches if batch in self._known[chosen.tobytes()]])
        return chosen.tobytes() == best.tobytes() or mean <= errors * error  # losses may be infinite
