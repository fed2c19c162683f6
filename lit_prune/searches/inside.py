"""A search inside of another: on candidates that are left, on some of the batches, and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from lit_prune.plan import KINDS, Candidate, PruneStep, Scores
from lit_prune.searches.order import Floats, Round, SequenceLosses


def grown(inner: Callable[..., Scores], score: Round, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The set that another search ends with, in the order of its removals.

    What saves more than is still wanted, by no less than the smallest candidate, is left in while there is other: the
    last one would make way for it otherwise, or what went before.
    """
    steps: list[PruneStep] = []
    gone: list[Candidate] = []
    least = min(map(score.saved, candidates))
    while not score.reaches(gone):
        onward = _Onward(score, tuple(gone))
        left = [candidate for candidate in candidates if candidate not in gone]
        fitting = [candidate for candidate in left if score.saved(candidate) < onward.wanted + least]
        scores = inner(onward, fitting or left, steps)
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
        return self._score(candidates, self._moved(batches_of(share, self.num_batches)), without=without)

    def losses(
        self, candidates: Sequence[Candidate], batches: range, *, without: Sequence[Candidate] = ()
    ) -> SequenceLosses:
        """See `Round`."""
        found = self._score.losses(candidates, self._moved(batches), without=without)

        def numbered(sums: Mapping[int, Floats]) -> dict[int, Floats]:
            return {number - self._first: own for number, own in sums.items()}

        sums_without = {candidate: numbered(sums) for candidate, sums in found.without.items()}
        return SequenceLosses(sums_without, numbered(found.tokens))

    def _moved(self, batches: range) -> range:
        return range(batches.start + self._first, batches.stop + self._first, batches.step)


class Counted:
    """A round that counts what is asked of it, so that a search can keep to a number of passes.

    What runs also depends on the states that fit into memory and on what a journal knows; this count does not, so a
    search that goes by it decides the same wherever it runs and however often it was stopped.

    Attributes:
        passes: What was asked, each set and batch once, in dense passes over all batches: a set takes the blocks from
            the first that it changes on.
    """

    def __init__(self, score: Round) -> None:
        self._score, self.passes = score, 0.0
        self.wanted, self.blocks, self.num_batches = score.wanted, score.blocks, score.num_batches
        self.saved, self.reaches = score.saved, score.reaches
        self._behind = {block: 1 - place / len(score.blocks) for place, block in enumerate(score.blocks)}
        self._seen: set[tuple[Candidate, int]] = set()

    def __call__(
        self, candidates: Sequence[Candidate], share: float | range = 1.0, *, without: Sequence[Candidate] = ()
    ) -> Scores:
        """See `Round`."""
        self._count(candidates, batches_of(share, self.num_batches), without)
        return self._score(candidates, share, without=without)

    def losses(
        self, candidates: Sequence[Candidate], batches: range, *, without: Sequence[Candidate] = ()
    ) -> SequenceLosses:
        """See `Round`."""
        self._count(candidates, batches, without)
        return self._score.losses(candidates, batches, without=without)

    def _count(self, candidates: Sequence[Candidate], batches: range, without: Sequence[Candidate]) -> None:
        asked = {
            Candidate.together([*without, each]): self._behind[each.block] for each in candidates if each.sublayers
        }
        asked[Candidate.together(without)] = 1.0
        for batch in batches:
            for gone, blocks in asked.items():
                if (gone, batch) not in self._seen:
                    self._seen.add((gone, batch))
                    self.passes += blocks / self.num_batches


def batches_of(share: float | range, num_batches: int) -> range:
    """The batches that a share stands for: the first, and one at least."""
    return share if isinstance(share, range) else range(max(1, math.ceil(share * num_batches)))
