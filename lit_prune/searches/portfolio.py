"""Many whole sets, compared on few tokens and then on more, and judged on tokens that chose none of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_prune.errors import DataError, LitPruneError
from lit_prune.plan import Candidate, Scores
from lit_prune.searches.inside import Part, grown
from lit_prune.searches.lazy import Lazy
from lit_prune.searches.order import SEARCHES, Floats, Round
from lit_prune.searches.set_losses import Set, SetLosses
from lit_prune.searches.surrogate import Surrogate
from lit_prune.searches.whole import WholeSet


@SEARCHES.register("portfolio")
@dataclass(frozen=True)
class Portfolio(WholeSet):
    """A race of whole sets, judged on calibration batches that no set was chosen by.

    A greedy search decides between candidates that differ by less than a few thousand tokens can tell, and whatever
    chance decides leads to another set. Here sets are compared and not steps, all on the same tokens:

    1. Every candidate is measured alone. A `Surrogate` begins with that.
    2. Sets that save what is wanted, and hardly more, are proposed by annealing on draws from what the surrogate
       believes, measured on the first batches, and learned from, several times over. The sets that a `lazy` search
       finds on as few batches, and that scores of one round give, are among them.
    3. The best go on to more batches; out goes what is worse than the best by more than `margin` standard errors of the
       paired difference.
    4. Swaps of the best that the surrogate proposes go through the same stages, and are taken where they are better by
       more than a standard error on all batches that search; then swaps of what was found, as long as any is better.
    5. The last few are compared on the `held_out` batches.

    By the model's loss, whatever the scorer: that one only orders the first proposals. Thompson sampling, and
    successive halving (Karnin et al., ICML 2013); whole sets on few tokens first, as EvoPress compares them (arXiv
    2410.14649).

    Args:
        held_out: Share of the batches that judge, the last of them.
        generations: Number of times that sets are proposed.
        proposals: Number of sets in a generation.
        alone: Share of the searching batches that candidates are measured on alone.
        shares: Shares of the searching batches in the stages of the race; the first measures proposals, the last is 1.
        survivors: Numbers of sets that the stages leave at most.
        margin: Standard errors behind the best at which a set goes out.
        rounds: The most times that swaps are tried; two in a row without a better set are the last.
        swaps: Number of swaps that are tried in a round.
        seed: Decides the random numbers.

    Raises:
        LitPruneError: A number is out of range, or shares and survivors do not fit each other.
    """

    held_out: float = 0.25
    generations: int = 2
    proposals: int = 20
    alone: float = 0.25
    shares: tuple[float, ...] = (1 / 6, 1 / 3, 1.0)
    survivors: tuple[int, ...] = (12, 4, 4)
    margin: float = 1.5
    rounds: int = 6
    swaps: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("generations", "proposals", "rounds", "swaps"):
            if getattr(self, name) < 1:
                raise LitPruneError(f"{name} must be 1 or more; found {getattr(self, name)}")
        for name in ("held_out", "alone"):
            if not 0 < getattr(self, name) < 1:
                raise LitPruneError(f"{name} is a share above 0 and below 1; found {getattr(self, name)}")
        shares, survivors = tuple(self.shares), tuple(self.survivors)
        if not shares or shares[-1] != 1 or list(shares) != sorted(set(shares)) or shares[0] <= 0:
            raise LitPruneError(f"shares must rise to 1, from above 0; found {list(shares)}")
        if len(survivors) != len(shares) or min(survivors) < 1:
            raise LitPruneError(f"survivors are numbers, as many as shares; found {list(survivors)}")

    def decide(self, score: Round, candidates: Sequence[Candidate]) -> Scores:
        """The set that is best on what was held out."""
        if score.num_batches < 2:
            raise DataError("portfolio holds batches back to judge by, and there is one; give more, or smaller ones")
        num_searching = score.num_batches - self.num_held_out(score.num_batches)
        race = _Race(self, score, sorted(candidates), num_searching)
        race.propose()
        return race.judged(race.swapped(race.run()))


@dataclass
class _Race:
    """One run of a portfolio search over `num_searching` batches, and those behind them."""

    search: Portfolio
    score: Round
    candidates: Sequence[Candidate]
    num_searching: int

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.search.seed)
        self.sizes = np.array([self.score.saved(candidate) for candidate in self.candidates], dtype=float)
        self.sets: list[Set] = []
        self.losses = SetLosses(self.score, self.candidates)
        self.surrogate = Surrogate(self.candidates, self._rises_alone())

    def _batches(self, share: float) -> range:
        return range(max(1, round(share * self.num_searching)))

    def _rises_alone(self) -> Floats:
        batches = self._batches(self.search.alone)
        found = self.score.losses(self.candidates, batches)
        tokens = sum(found.tokens[batch].sum() for batch in batches)
        rises = [
            sum((found.without[candidate][batch] - found.base[batch]).sum() for batch in batches) / tokens
            for candidate in self.candidates
        ]
        return np.array(rises)

    def propose(self) -> None:
        """Measure proposals on the first batches, generation by generation, and learn from them."""
        first = self._batches(self.search.shares[0])
        weakest = self.surrogate.drawn(None)[0] / np.maximum(self.sizes, 1e-12)
        self._add(self._filled(np.zeros(len(self.sizes), bool), np.argsort(weakest)))
        more = self._batches(self.search.shares[min(1, len(self.search.shares) - 1)])
        lazily = grown(Lazy(), Part(self.score, more), self.candidates)
        self._add(np.array([candidate in lazily for candidate in self.candidates]))
        for _ in range(self.search.generations):
            for number in range(self.search.proposals):
                belief = self.surrogate.drawn(None if number == 0 else self.draw)
                start = self.sets[self.draw.integers(len(self.sets))]
                self._add(self._annealed(belief, start))
            self.losses.measure(self.sets, first)
            self._learn()

    def _add(self, proposal: Set) -> None:
        if proposal.tobytes() not in {each.tobytes() for each in self.sets}:
            self.sets.append(proposal)

    def _learn(self) -> None:
        """Learn from all sets, each by the batches that it was measured on."""
        own = [self.losses.batches_of(each) for each in self.sets]
        pairs = list(zip(self.sets, own, strict=True))
        rises = np.array([self.losses.mean(each, batches) - self.losses.base(batches) for each, batches in pairs])
        self.surrogate.fit(np.stack(self.sets), rises, np.array([float(len(batches)) for batches in own]))

    def _annealed(self, belief: tuple[Floats, Floats], start: Set) -> Set:
        """A set with little expected loss that saves what is wanted and hardly more."""
        alone, pairs = belief
        heat = float(np.std(alone)) or 1.0
        current, value = start, self._energy(start, alone, pairs)
        best, best_value = current, value
        steps = 40 * int(start.sum()) + 200
        for step in range(steps):
            members = np.flatnonzero(current)
            back = self.draw.choice(members, size=min(len(members), int(self.draw.integers(1, 3))), replace=False)
            fewer = current.copy()
            fewer[back] = False
            order = self.draw.permutation(len(current))
            # Who comes back does not go at once, unless nothing else can.
            proposal = self._filled(fewer, np.concatenate([order[~np.isin(order, back)], back]))
            found = self._energy(proposal, alone, pairs)
            cooled = heat * 0.5 * (1 - step / steps) ** 2 + 1e-9
            if found <= value or self.draw.random() < math.exp((value - found) / cooled):
                current, value = proposal, found
                if value < best_value:
                    best, best_value = current, value
        return best

    def _energy(self, chosen: Set, alone: Floats, pairs: Floats) -> float:
        members = np.flatnonzero(chosen)
        excess = self.sizes[members].sum() - self.score.wanted
        # What is saved beyond the wanted costs as much as it does on average: a set that saves less is as good.
        waste = max(0.0, float(excess - self.sizes.min()) / float(self.sizes.mean())) * float(np.abs(alone).mean())
        return float(alone[members].sum() + pairs[np.ix_(members, members)].sum() / 2) + 4 * waste

    def _filled(self, chosen: Set, order: NDArray[np.int_]) -> Set:
        """Add in an order until enough is saved, then put back what is more than enough, largest first."""
        chosen = chosen.copy()
        saved = float(self.sizes[chosen].sum())
        for place in order:
            if saved >= self.score.wanted:
                break
            if not chosen[place]:
                chosen[place] = True
                saved += self.sizes[place]
        members = np.flatnonzero(chosen)
        for place in members[np.argsort(-self.sizes[members], kind="stable")]:
            if saved - self.sizes[place] >= self.score.wanted:
                chosen[place] = False
                saved -= self.sizes[place]
        return chosen

    def run(self) -> list[Set]:
        """The last of the race, best first."""
        left = list(self.sets)
        expected = dict(zip([each.tobytes() for each in left], self.surrogate.predicted(np.stack(left)), strict=True))
        for number, (share, most) in enumerate(zip(self.search.shares, self.search.survivors, strict=True)):
            batches = self._batches(share)
            self.losses.measure(left, batches)
            means = {each.tobytes(): self.losses.mean(each, batches) for each in left}
            if number == 0:
                # Few tokens are trusted as much as what all sets together say of this one.
                dense = self.losses.base(batches)
                means = {key: (mean + expected[key] + dense) / 2 for key, mean in means.items()}
            left.sort(key=lambda each: (means[each.tobytes()], each.tobytes()))
            kept = [left[0]]
            for each in left[1:]:
                mean, error = self.losses.behind(each, left[0], batches)
                if number == 0 or mean <= self.search.margin * error:
                    kept.append(each)
            left = kept[:most]
        return left

    def swapped(self, finalists: list[Set]) -> list[Set]:
        """The finalists, with swaps of the best one that are better than it, swaps of the best of those, and so on."""
        misses = 0
        for _ in range(self.search.rounds):
            self._learn()
            best = finalists[0]
            left = self._neighbours(best, *self._around(best))
            for share in self.search.shares:
                batches = self._batches(share)
                self.losses.measure(left, batches)
                left.sort(key=lambda each: (self.losses.mean(each, batches), each.tobytes()))
                left = [each for each in left if self.losses.mean(each, batches) < self.losses.mean(best, batches)]
                if share < 1:
                    left = left[: max(1, self.search.swaps // 3)]
            mean_error = [self.losses.behind(each, best, self._batches(1.0)) for each in left]
            better = [each for each, (mean, error) in zip(left, mean_error, strict=True) if mean < -error]
            misses = 0 if better else misses + 1
            if misses == 2:
                break
            finalists = [*better, *finalists][: self.search.survivors[-1]]
        return finalists

    def _around(self, best: Set) -> tuple[Floats, Floats]:
        """What each candidate does to the best set by going, or by coming back: measured rises, and their errors."""
        first = self._batches(self.search.shares[0])
        changed = self.losses.measure_around(best, first)
        found = np.array([self.losses.behind(each, best, first) for each in changed])
        return found[:, 0], found[:, 1]

    def _neighbours(self, best: Set, rises: Floats, errors: Floats) -> list[Set]:
        """Sets that differ from the best by a member or two: half of them as is expected best, half as may be best."""
        known, found = {each.tobytes() for each in self.sets}, {}
        signs = np.where(best, -1.0, 1.0)

        def belief(draw: np.random.Generator | None) -> tuple[Floats, Floats]:
            # Rises add up but for pairs of changes, of which the surrogate knows.
            pairs = self.surrogate.drawn(draw)[1]
            own = rises if draw is None else rises + errors * draw.standard_normal(len(rises))
            return signs * own - pairs @ best, pairs

        order = np.argsort(belief(None)[0] / self.sizes, kind="stable")
        for place in np.flatnonzero(best):
            fewer = best.copy()
            fewer[place] = False
            for other in np.flatnonzero(~best):
                proposal = self._filled(fewer, np.array([other, *order]))
                if proposal.tobytes() not in known:
                    found[proposal.tobytes()] = proposal
        chosen: dict[bytes, Set] = {}
        for number in range(self.search.swaps):
            alone, pairs = belief(None if number < self.search.swaps / 2 else self.draw)
            left = [each for key, each in found.items() if key not in chosen]
            if left:
                proposal = min(left, key=lambda each: (self._energy(each, alone, pairs), each.tobytes()))
                chosen[proposal.tobytes()] = proposal
        self.sets += chosen.values()
        return list(chosen.values())

    def judged(self, finalists: list[Set]) -> Scores:
        """The best on what was held out; among those within a standard error of it the best on all batches."""
        held_out = range(self.num_searching, self.score.num_batches)
        self.losses.measure(finalists, held_out)
        best = min(finalists, key=lambda each: (self.losses.mean(each, held_out), each.tobytes()))
        ties = []
        for each in finalists:
            mean, error = self.losses.behind(each, best, held_out)
            if each is best or mean <= error:
                ties.append(each)
        everything = range(self.score.num_batches)
        chosen = min(ties, key=lambda each: (self.losses.mean(each, everything), each.tobytes()))
        return Scores(dict.fromkeys(self.losses.members(chosen), self.losses.mean(chosen, held_out)))
