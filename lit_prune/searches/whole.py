"""Searches that decide in the first round which sublayers go together, and then take them out one by one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from lit_prune.errors import BudgetError, LitPruneError
from lit_prune.plan import Candidate, Named, PruneStep, Scores, create
from lit_prune.searches.inside import grown
from lit_prune.searches.order import SEARCHES, Round, Search

Members = frozenset[Candidate]


class WholeSet(Search):
    """A search whose `decide` names all that is to go.

    The scores of a round hold the members that are still in the model, each with the score of the set as a whole.
    """

    def __call__(self, score: Round, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Decide in the first round; follow the plan's own record afterwards."""
        known = history[0].scores if history else {}
        left = {candidate: known[candidate.name] for candidate in candidates if candidate.name in known}
        if left:
            return Scores(left)
        if math.isinf(score.wanted):
            raise BudgetError(f"{type(self).__name__} decides on a whole set, so it needs an amount")
        return self.decide(score, candidates)

    def decide(self, score: Round, candidates: Sequence[Candidate]) -> Scores:
        """The scores of the candidates that save what is wanted together: of each, that of all as one."""
        raise NotImplementedError


@SEARCHES.register("contiguous")
@dataclass(frozen=True)
class Contiguous(WholeSet):
    """Blocks in a row, no more of them than the amount asks for.

    "The Unreasonable Ineffectiveness of the Deeper Layers" (Gromov, arXiv 2403.17887): the run with the lowest score,
    there by `angular`; or the deepest blocks but the last, without looking at them.

    Args:
        where: `best` scores every run; `deepest` takes the last one that leaves the last `spare` blocks.
        spare: Blocks at the end that `deepest` leaves alone.

    Raises:
        LitPruneError: `where` is unknown, or `spare` is negative.
    """

    where: Literal["best", "deepest"] = "best"
    spare: int = 1

    def __post_init__(self) -> None:
        if self.where not in ("best", "deepest"):
            raise LitPruneError(f"where must be best or deepest; found {self.where!r}")
        if self.spare < 0:
            raise LitPruneError(f"spare is a number of blocks, 0 or more; found {self.spare}")

    def decide(self, score: Round, candidates: Sequence[Candidate]) -> Scores:
        """The best run, or the deepest."""
        runs = list(self._runs(score, sorted(candidates)))
        if not runs:
            raise BudgetError("no blocks in a row save what is asked for; ask for less or protect less")
        if self.where == "deepest":
            return Scores(dict.fromkeys(runs[-1], 0.0))
        together = {Candidate.together(run): run for run in runs}
        scores = score(list(together))
        return Scores(dict.fromkeys(together[scores.best], scores.importance[scores.best]))

    def _runs(self, score: Round, ordered: Sequence[Candidate]) -> Iterable[list[Candidate]]:
        """From every start the shortest run that saves enough; blocks that may not go end a run."""
        last = max(score.blocks) - self.spare if self.where == "deepest" else math.inf
        allowed = [candidate for candidate in ordered if candidate.block <= last]
        following = dict(pairwise(score.blocks))
        blocks = sorted({candidate.block for candidate in allowed})
        for first in blocks:
            run: list[Candidate] = []
            block: int | None = first
            while block in blocks and not (run and score.reaches(run)):
                run += [candidate for candidate in allowed if candidate.block == block]
                block = following.get(block)
            if score.reaches(run):
                yield run


@SEARCHES.register("evolutionary")
@dataclass(frozen=True)
class Evolutionary(WholeSet):
    """A (1 + lambda) evolution of whole sets: EvoPress (arXiv 2410.14649).

    The parent is the best of some random sets. In each generation its offspring differ by a few switches: as many
    members come back as others go, so that what is saved stays what is wanted. Selection is staged: all are scored on
    few tokens, the best of them and the parent on more, up to all.

    A set is scored as one, by the scorer: the original takes `kl`, the divergence from the dense model.

    Args:
        generations: Number of times that offspring is made.
        offspring: Number of sets in a generation.
        initial: Number of random sets to begin with.
        shares: Shares of the calibration batches that the stages of a selection measure on; the last is 1.
        survivors: Numbers of sets that the stages leave, without the last, which leaves one.
        switches: The most members that an offspring changes; few are more likely than many.
        seed: Decides the random numbers.

    Raises:
        LitPruneError: A number is below 1, or shares and survivors do not fit each other.
    """

    generations: int = 24
    offspring: int = 16
    initial: int = 32
    shares: tuple[float, ...] = (0.125, 1.0)
    survivors: tuple[int, ...] = (2,)
    switches: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("generations", "offspring", "initial", "switches"):
            if getattr(self, name) < 1:
                raise LitPruneError(f"{name} must be 1 or more; found {getattr(self, name)}")
        shares, survivors = tuple(self.shares), tuple(self.survivors)
        require_rising(shares)
        if len(survivors) != len(shares) - 1 or min(survivors, default=1) < 1:
            raise LitPruneError(f"survivors are numbers, one fewer than shares; found {list(survivors)}")

    def decide(self, score: Round, candidates: Sequence[Candidate]) -> Scores:
        """The fittest of the last generation."""
        draw = random.Random(self.seed)
        found = {self._filled(score, frozenset(), candidates, draw) for _ in range(self.initial)}
        parent, value = self._select(score, found)
        for _ in range(self.generations):
            mutants = {self._mutated(score, parent, candidates, draw) for _ in range(self.offspring)}
            parent, value = self._select(score, mutants - {parent}, parent)
        return Scores(dict.fromkeys(parent, value))

    def _mutated(self, score: Round, parent: Members, candidates: Sequence[Candidate], draw: random.Random) -> Members:
        # The smaller of two numbers, so that few switches are more likely.
        number = min(draw.randint(1, self.switches), draw.randint(1, self.switches), len(parent))
        back = set(draw.sample(sorted(parent), number))
        # Who comes back does not go at once, unless nothing else can.
        others = [candidate for candidate in candidates if candidate not in back]
        return self._filled(score, parent - back, others if score.reaches(others) else candidates, draw)

    @staticmethod
    def _filled(score: Round, members: Members, candidates: Sequence[Candidate], draw: random.Random) -> Members:
        """Add at random until enough is saved, then put back what is more than enough."""
        rest = sorted(set(candidates) - members)
        draw.shuffle(rest)
        added: list[Candidate] = []
        while not score.reaches(members.union(added)):
            added.append(rest.pop())
        full = members.union(added)
        for member in draw.sample(sorted(full), len(full)):
            if score.reaches(full - {member}):
                full -= {member}
        return full

    def _select(self, score: Round, sets: Iterable[Members], parent: Members | None = None) -> tuple[Members, float]:
        left = sorted(sets, key=sorted)
        for share, number in zip(self.shares, (*self.survivors, 1), strict=True):
            if share == 1 and parent is not None:
                left = [*left, parent]
            values = scores_of(score, left, share)
            left = sorted(left, key=lambda members: (values[members], sorted(members)))[:number]
        return left[0], values[left[0]]


@SEARCHES.register("refine")
@dataclass(frozen=True)
class Refine(WholeSet):
    """Another search first, then swaps: each member makes way for what is better in its place, if anything is.

    A greedy search never takes back what it took. Here every member in turn comes back, all that saves at least as
    much as needed and no more than it does is screened in its place, the best of those are measured on all tokens, and
    the better one stays out.

    Args:
        start: The search that makes the first set, as a name or a mapping with its options.
        sweeps: The most times that all members are tried; a sweep that changes nothing is the last.
        screen: Share of the calibration batches to screen on.
        confirm: Number of candidates for a place that are measured on all tokens.

    Raises:
        LitPruneError: A number is below 1, or `screen` is not above 0 and up to 1.
    """

    start: Named = "lazy"
    sweeps: int = 2
    screen: float = 0.25
    confirm: int = 3
    _inner: Callable[..., Scores] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.sweeps, self.confirm) < 1:
            raise LitPruneError(f"sweeps and confirm must be 1 or more; found {self.sweeps} and {self.confirm}")
        if not 0 < self.screen <= 1:
            raise LitPruneError(f"screen is a share above 0 and up to 1; found {self.screen}")
        object.__setattr__(self, "_inner", create(SEARCHES, self.start))

    def decide(self, score: Round, candidates: Sequence[Candidate]) -> Scores:
        """The first set, swapped until nothing is better."""
        members = grown(self._inner, score, candidates)
        settled: set[Members] = set()
        for _ in range(self.sweeps):
            before = set(members)
            for member in list(members):
                others = frozenset(members) - {member}
                if others not in settled:
                    members[members.index(member)] = self._in_place_of(member, score, candidates, others)
                    settled.add(others)
            if set(members) == before:
                break
        final = frozenset(members)
        return Scores(dict.fromkeys(final, scores_of(score, [final], 1.0)[final]))

    def _in_place_of(
        self, member: Candidate, score: Round, candidates: Sequence[Candidate], others: Members
    ) -> Candidate:
        size = score.saved(member)
        fit = [
            candidate
            for candidate in candidates
            if candidate not in others and score.saved(candidate) <= size and score.reaches(others | {candidate})
        ]
        out = tuple(sorted(others))
        rough = score(fit, self.screen, without=out).importance
        best = sorted(fit, key=lambda candidate: (rough[candidate], candidate))[: self.confirm]
        values = score(sorted({member, *best}), 1.0, without=out).importance
        return min(values, key=lambda candidate: (values[candidate], candidate != member, candidate))


def require_rising(shares: Sequence[float]) -> None:
    """Refuse, with a LitPruneError, shares of the batches for the stages of a race that do not rise to all of them."""
    if not shares or shares[-1] != 1 or list(shares) != sorted(set(shares)) or shares[0] <= 0:
        raise LitPruneError(f"shares must rise to 1, from above 0; found {list(shares)}")


def scores_of(score: Round, sets: Sequence[Members], share: float) -> dict[Members, float]:
    """The scores of whole sets, each as one."""
    named = {Candidate.together(members): members for members in sets}
    importance = score(list(named), share).importance if named else {}
    return {named[whole]: value for whole, value in importance.items()}
