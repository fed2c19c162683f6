"""A search inside of another: on candidates that are left, and on some of the batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from lit_prune.plan import KINDS, Candidate, PruneStep, Scores
from lit_prune.searches.order import Floats, Round, SequenceLosses


def grown(inner: Callable[..., Scores], score: Round, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The set that another search ends with, in the order of its removals."""
    steps: list[PruneStep] = []
    gone: list[Candidate] = []
    while not score.reaches(gone):
        left = [candidate for candidate in candidates if candidate not in gone]
        scores = inner(_Onward(score, tuple(gone)), left, steps)
        steps.append(PruneStep.recorded(scores.best, scores))
        gone.append(scores.best)
    # The last may have made an earlier, smaller one superfluous.
    for earlier in gone[:-1]:
        if score.reaches(fewer := [candidate for candidate in gone if candidate != earlier]):
            gone = fewer
    return gone


class _Onward:
    """A round in which some candidates are gone already, for a search that another one starts with."""

    def __init__(self, score: Round, gone: tuple[Candidate, ...]) -> None:
        self._score, self._gone = score, gone
        out = Candidate.together(gone).sublayers
        self.wanted = score.wanted - (score.saved(Candidate.together(gone)) if gone else 0)
        self.num_batches = score.num_batches
        self.blocks = [block for block in score.blocks if sum(sublayer.block == block for sublayer in out) < len(KINDS)]

    def __call__(
        self, candidates: Sequence[Candidate], share: float | range = 1.0, *, without: Sequence[Candidate] = ()
    ) -> Scores:
        return self._score(candidates, share, without=(*self._gone, *without))

    def losses(
        self, candidates: Sequence[Candidate], batches: range, *, without: Sequence[Candidate] = ()
    ) -> SequenceLosses:
        return self._score.losses(candidates, batches, without=(*self._gone, *without))

    def saved(self, candidate: Candidate) -> float:
        return self._score.saved(candidate)

    def reaches(self, candidates: Iterable[Candidate]) -> bool:
        return self._score.reaches([*self._gone, *candidates])


class Part:
    """A round on some of the batches."""

    def __init__(self, score: Round, batches: range) -> None:
        self._score, self._first, self.num_batches = score, batches.start, len(batches)
        self.wanted, self.blocks = score.wanted, score.blocks
        self.saved, self.reaches = score.saved, score.reaches

    def __call__(
        self, candidates: Sequence[Candidate], share: float | range = 1.0, *, without: Sequence[Candidate] = ()
    ) -> Scores:
        """See `Round`."""
        return self._score(candidates, self._moved(self._batches(share)), without=without)

    def losses(
        self, candidates: Sequence[Candidate], batches: range, *, without: Sequence[Candidate] = ()
    ) -> SequenceLosses:
        """See `Round`."""
        found = self._score.losses(candidates, self._moved(batches), without=without)

        def numbered(sums: Mapping[int, Floats]) -> dict[int, Floats]:
            return {number - self._first: own for number, own in sums.items()}

        sums_without = {candidate: numbered(sums) for candidate, sums in found.without.items()}
        return SequenceLosses(sums_without, numbered(found.tokens))

    def _batches(self, share: float | range) -> range:
        return share if isinstance(share, range) else range(max(1, math.ceil(share * self.num_batches)))

    def _moved(self, batches: range) -> range:
        return range(batches.start + self._first, batches.stop + self._first, batches.step)
