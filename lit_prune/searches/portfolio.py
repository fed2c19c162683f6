"""Whole sets, made of those that greedy searches find, raced on more and more tokens, and judged on others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from lit_prune.errors import DataError, LitPruneError
from lit_prune.plan import Candidate, Scores
from lit_prune.searches.inside import Counted, Part, grown
from lit_prune.searches.lazy import Lazy
from lit_prune.searches.order import SEARCHES, Round
from lit_prune.searches.set_losses import Set, SetLosses
from lit_prune.searches.whole import WholeSet, require_rising


@SEARCHES.register("portfolio")
@dataclass(frozen=True)
class Portfolio(WholeSet):
    """Sets that several searches find, crossed by depth, and judged on calibration batches that none was chosen by.

    A greedy search decides between candidates that differ by less than a few thousand tokens can tell, and whatever
    chance decides leads to another set. So whole sets are compared, and not steps, all on the same tokens:

    1. `lazy` searches, each on batches of its own, find the parents: more than `parents` where they take few passes.
    2. Children take what one parent removes in front of a block, and what another removes from there on. What saves
       too little takes more from its parents, smallest first; what is more than enough is put back, largest first, or
       makes way for something smaller.
    3. What each candidate does to the best set by going, or by coming back, is measured on the first batches. Swaps of
       which the sum promises most are children too.
    4. Children are measured on the first batches, the best of them on more, and the last few on all that search. The
       best of these and of their parents are the parents of the next round.
    5. The last few are compared on the `held_out` batches; of those within a standard error of the best the one that is
       best on all batches is taken. All sets of the search that are within two standard errors of that one, on
       whatever they were measured, are ties: the plan says in how many of them each candidate is.

    By the model's loss, whatever the scorer: that one decides in the `lazy` searches. One-point crossover (Holland,
    Adaptation in Natural and Artificial Systems, 1975), since what two sublayers are worth together depends on their
    distance, and whole sets on few tokens first, as EvoPress compares them (arXiv 2410.14649).

    Args:
        held_out: Share of the batches that judge, the last of them.
        parents: The least number of `lazy` searches; there are more while they take no more than half of the `passes`.
        parent_share: Share of the searching batches that one of them goes by.
        rounds: The most rounds. One that finds nothing better is not the last: the next tries other sets.
        passes: The most passes over all batches, or half as many again as the parents took where that is more: a round
            behind the first that would go beyond has fewer sets, and is not begun where they would not fill a stage.
        children: The most sets that are crossed in a round; which of more is decided at random.
        swaps: The most sets that are made by a swap in a round.
        shares: Shares of the searching batches that the stages of a round measure on; the last is 1.
        survivors: Numbers of sets that the stages leave at most.
        seed: Decides the random numbers.

    Raises:
        LitPruneError: A number is out of range, or shares and survivors do not fit each other.
    """

    held_out: float = 0.25
    parents: int = 2
    parent_share: float = 0.25
    rounds: int = 4
    passes: float = 40.0
    children: int = 28
    swaps: int = 12
    shares: tuple[float, ...] = (1 / 6, 1 / 3, 1.0)
    survivors: tuple[int, ...] = (12, 4, 4)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("parents", 1), ("rounds", 1), ("children", 1), ("swaps", 0)):
            if getattr(self, name) < least:
                raise LitPruneError(f"{name} must be {least} or more; found {getattr(self, name)}")
        if not self.passes > 0:
            raise LitPruneError(f"passes must be above 0; found {self.passes}")
        for name in ("held_out", "parent_share"):
            if not 0 < getattr(self, name) < 1:
                raise LitPruneError(f"{name} is a share above 0 and below 1; found {getattr(self, name)}")
        shares, survivors = tuple(self.shares), tuple(self.survivors)
        require_rising(shares)
        if len(survivors) != len(shares) or min(survivors) < 1:
            raise LitPruneError(f"survivors are numbers, as many as shares; found {list(survivors)}")

    def decide(self, score: Round, candidates: Sequence[Candidate]) -> Scores:
        """The set that is best on what was held out."""
        if score.num_batches < 2:
            raise DataError("portfolio holds batches back to judge by, and there is one; give more, or smaller ones")
        num_searching = score.num_batches - self.num_held_out(score.num_batches)
        breeding = _Breeding(self, score, sorted(candidates), num_searching)
        for _ in range(self.rounds):
            breeding.breed()
        return breeding.judged()


class _Breeding:
    """The sets of one search over `num_searching` batches, and those behind them: the best so far, best first."""

    def __init__(self, search: Portfolio, score: Round, candidates: Sequence[Candidate], num_searching: int) -> None:
        self._search, self._score, self._candidates = search, Counted(score), candidates
        self._num_searching = num_searching
        self._first_stage = self._other_stages = 0.0  # passes of the last round
        self._sizes = np.array([score.saved(candidate) for candidate in candidates], dtype=float)
        self._smallest_first = np.argsort(self._sizes, kind="stable")
        self._blocks = np.array([candidate.block for candidate in candidates])
        self._draw = np.random.default_rng(search.seed)
        self._losses = SetLosses(self._score, candidates)
        found = [frozenset(grown(Lazy(), Part(self._score, part), candidates)) for part in self._affordable_parts()]
        drawn = [np.array([candidate in members for candidate in candidates]) for members in found]
        trimmed = (self._trimmed(parent, self._smallest_first) for parent in drawn)
        sets = list({each.tobytes(): each for each in trimmed if each is not None}.values())
        self._known = {each.tobytes(): each for each in sets}
        self._limit = max(search.passes, 1.5 * self._score.passes)
        self._best = self._ranked(sets, 1.0)

    def _affordable_parts(self) -> Iterator[range]:
        """The batches of each parent's search: others, as long as there are some, and passes."""
        length = len(self._batches(self._search.parent_share))
        for number in range(max(1, self._num_searching // length)):
            expected = self._score.passes * (number + 1) / max(1, number)
            if number >= self._search.parents and expected > self._search.passes / 2:
                return
            yield range(number * length, (number + 1) * length)

    def _batches(self, share: float) -> range:
        return range(max(1, round(share * self._num_searching)))

    def _ranked(self, sets: Sequence[Set], share: float) -> list[Set]:
        batches = self._batches(share)
        self._losses.measure(sets, batches)
        return sorted(sets, key=lambda each: (self._losses.mean(each, batches), each.tobytes()))

    def breed(self) -> None:
        """Make children of the best sets, as many as there are passes for, and keep the best of them all."""
        part, begun = self._affordable(), self._score.passes
        if not part:
            return
        crossed, number = list(self._crossed()), round(part * self._search.children)
        if len(crossed) > number:
            crossed = [crossed[place] for place in sorted(self._draw.choice(len(crossed), number, replace=False))]
        children = [*crossed, *self._swapped(round(part * self._search.swaps))]
        self._known |= {child.tobytes(): child for child in children}
        made = self._score.passes
        for share, number in zip(self._search.shares, self._search.survivors, strict=True):
            children = self._ranked(children, share)[:number]
            if share == self._search.shares[0]:
                self._first_stage = self._score.passes - made
        self._best = self._ranked([*self._best, *children], 1.0)[: self._search.survivors[-1]]
        self._other_stages = self._score.passes - begun - self._first_stage

    def _affordable(self) -> float:
        """Which part of the sets of a round there are passes for, by what the last round took."""
        if not self._first_stage:
            return 1.0
        judging = self._search.survivors[-1] * (1 - self._num_searching / self._score.num_batches)
        left = self._limit - self._score.passes - judging - self._other_stages
        part = min(1.0, left / self._first_stage)
        return part if part * (self._search.children + self._search.swaps) >= self._search.survivors[0] else 0.0

    def _crossed(self) -> Iterator[Set]:
        """Sets that were not known: one parent's members in front of a block, and another's from there on."""
        smallest, seen = self._smallest_first, set(self._known)
        for front, back in permutations(self._best, 2):
            for block in self._score.blocks[1:]:
                order = smallest[(front | back)[smallest]]
                child = self._trimmed(np.where(self._blocks < block, front, back), order)
                if child is not None and child.tobytes() not in seen:
                    seen.add(child.tobytes())
                    yield child

    def _swapped(self, number: int) -> list[Set]:
        """Sets that were not known: the best one with a member or two in the places of others, as promises most."""
        best, first = self._best[0], self._batches(self._search.shares[0])
        if not number:
            return []
        changed = self._losses.measure_around(best, first)
        rises = np.array([self._losses.behind(each, best, first)[0] for each in changed])
        order, found = np.argsort(rises / self._sizes, kind="stable"), {}
        for back, joins in product(np.flatnonzero(best), np.flatnonzero(~best)):
            fewer = best.copy()
            fewer[back] = False
            child = self._trimmed(fewer, np.array([joins, *order[order != back]]))
            if child is not None and child.tobytes() not in self._known:
                found[child.tobytes()] = child
        promising = sorted(found.values(), key=lambda each: (float(rises[each ^ best].sum()), each.tobytes()))
        return promising[:number]

    def _trimmed(self, child: Set, order: NDArray[np.int_]) -> Set | None:
        """A set that saves what is wanted and hardly more; None where those that may join it are too small."""
        child = self._filled(child, order)
        saved = float(self._sizes[child].sum())
        members = np.flatnonzero(child)
        for place in members[np.argsort(-self._sizes[members], kind="stable")]:
            if saved - self._sizes[place] >= self._score.wanted:
                child[place] = False
                saved -= self._sizes[place]
        return self._tightened(child, order) if saved >= self._score.wanted else None

    def _filled(self, child: Set, order: NDArray[np.int_], *, most: float = np.inf) -> Set:
        """The same with as many more as it takes, in their order, but those that exceed what is left by `most`."""
        child = child.copy()
        wanted = self._score.wanted - float(self._sizes[child].sum())
        for place in order:
            if wanted > 0 and not child[place] and self._sizes[place] < wanted + most:
                child[place] = True
                wanted -= self._sizes[place]
        return child

    def _tightened(self, child: Set, order: NDArray[np.int_]) -> Set:
        """The same with smaller candidates in the place of a large one, where more is saved than the smallest has."""
        least = self._sizes.min()
        if self._sizes[child].sum() - self._score.wanted < least:
            return child
        others = np.array([*order, *self._smallest_first])
        for place in np.argsort(-self._sizes, kind="stable"):
            if child[place]:
                fewer = child ^ (np.arange(len(child)) == place)
                made = self._filled(fewer, others[others != place], most=least)
                if self._sizes[made].sum() >= self._score.wanted:
                    return made
        return child

    def judged(self) -> Scores:
        """The best on what was held out; among those within a standard error of it the best on all batches."""
        held_out, everything = range(self._num_searching, self._score.num_batches), range(self._score.num_batches)
        self._losses.measure(self._best, held_out)
        best = min(self._best, key=lambda each: (self._losses.mean(each, held_out), each.tobytes()))
        alike = [each for each in self._best if self._losses.are_tied(each, best, held_out, errors=1)]
        chosen = min(alike, key=lambda each: (self._losses.mean(each, everything), each.tobytes()))
        ties = [each for each in self._known.values() if self._losses.are_tied(each, chosen, everything, errors=2)]
        shares = np.mean(ties, axis=0)
        return Scores(
            dict.fromkeys(self._losses.members(chosen), self._losses.mean(chosen, held_out)),
            chosen={candidate: float(share) for candidate, share in zip(self._candidates, shares, strict=True)},
        )
