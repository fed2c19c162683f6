"""Progressive search that measures again only what may have become the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lit_prune.errors import LitPruneError
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.searches.order import SEARCHES, ScoreFunction


@dataclass(frozen=True)
class _Estimate:
    """What is believed of a candidate's score.

    Attributes:
        value: The score.
        trust: The share of `value` below which the true score hardly lay when it was measured.
        num_near: Removals near it since then.
        num_far: Removals farther off since then.
        full: The last score on all tokens, None where there is none.
        paired: The screened score of that moment, for differences on the same tokens.
    """

    value: float
    trust: float
    num_near: int = 0
    num_far: int = 0
    full: float | None = None
    paired: float | None = None


@SEARCHES.register("lazy")
@dataclass(frozen=True)
class Lazy:
    """Keep the last round's scores, and measure the head of the queue until nothing behind it can be better.

    A removal changes the scores of blocks nearby, and hardly those farther off. So each score of an earlier round has
    a lower bound: `near` of itself after one removal within `reach` blocks, `far` of itself after one elsewhere; as
    scores rise and fall, n removals count like the square root of n.

    Candidates are taken by their bounds. Each is first screened on a share of the tokens, and what is added to its last
    full score is the difference to what the same tokens said then, so that what is peculiar to them cancels. Only what
    may still win is measured on all tokens. Where the best of a round turns out to lie below its bound, the order is
    disturbed: all of its kind (near the last removal, or farther off) are screened. Where removal helps, the first that
    is found to help is taken.

    The plan tells which candidates were measured in each round, and on which share of the tokens.

    Args:
        screen: Share of the calibration batches to screen on.
        near: How much of a score is left at least, when a block within `reach` lost a sublayer.
        far: The same for any other removal.
        reach: How far a removal is felt, in blocks.
        noise: How much of a screened score is left at least on all tokens, where there is no earlier full score.
        paired_noise: The same where there is one.

    Raises:
        LitPruneError: A share is not above 0 and up to 1, or `reach` is negative.
    """

    within_epoch: ClassVar[bool] = True
    """Only removals of the same epoch are its history."""

    screen: float = 0.25
    near: float = 0.6
    far: float = 0.92
    reach: int = 2
    noise: float = 0.6
    paired_noise: float = 0.85

    def __post_init__(self) -> None:
        for name in ("screen", "near", "far", "noise", "paired_noise"):
            if not 0 < getattr(self, name) <= 1:
                raise LitPruneError(f"{name} is a share above 0 and up to 1; found {getattr(self, name)}")
        if self.reach < 0:
            raise LitPruneError(f"reach is a number of blocks, 0 or more; found {self.reach}")

    def __call__(self, score: ScoreFunction, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score until the best is found; what was not measured keeps its estimate."""
        last = history[-1].removed.block if history else None
        return _Round(self, score, candidates, self._estimates(candidates, history), last).run()

    def _estimates(self, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> dict[str, _Estimate]:
        found: dict[str, _Estimate] = {}
        for step in history:
            for name, value in step.scores.items():
                if step.measured.get(name):
                    found[name] = self._measured(found.get(name), step, name, value)
                if name in found:
                    old, near = found[name], _distance(name, step.removed.block) <= self.reach
                    found[name] = replace(old, num_near=old.num_near + near, num_far=old.num_far + (not near))
        names = {each.name for each in candidates}
        return {name: each for name, each in found.items() if name in names}

    def bound(self, estimate: _Estimate) -> float:
        """The share of an estimate below which the true score hardly lies by now."""
        near: float = self.near ** math.sqrt(estimate.num_near)
        far: float = self.far ** math.sqrt(estimate.num_far)
        return estimate.trust * near * far

    def _measured(self, before: _Estimate | None, step: PruneStep, name: str, value: float) -> _Estimate:
        if step.measured[name] == 1:
            return _Estimate(value, 1.0, full=value, paired=step.screened.get(name))
        if before is None or before.full is None:
            return _Estimate(value, self.noise)
        return _Estimate(value, self.paired_noise, full=before.full, paired=before.paired)


class _Round:
    """One round of a lazy search."""

    def __init__(
        self,
        search: Lazy,
        score: ScoreFunction,
        candidates: Sequence[Candidate],
        known: Mapping[str, _Estimate],
        last: int | None,
    ) -> None:
        self.search = search
        self.score = score
        self.candidates = list(candidates)
        self.estimates = dict(known)
        self.last = last
        self.screened: dict[Candidate, float] = {}
        self.settled: dict[Candidate, float] = {}
        self.nll: dict[Candidate, float] = {}
        self.base_nll: float | None = None
        self.zero = 0.0
        self.promised: dict[Candidate, float] = {}

    def run(self) -> Scores:
        self._screen([each for each in self.candidates if each.name not in self.estimates])
        self.promised = {each: self._bound(each) for each in self.candidates}
        while rest := [each for each in self.candidates if each not in self.settled]:
            bounds = {each: self._bound(each) for each in rest}
            head = min(rest, key=lambda each: (bounds[each], each))
            if bounds[head] >= min(self.settled.values(), default=math.inf):
                break
            if head not in self.screened:
                self._screen([head])
            else:
                self._settle(head)
        importance = {each: self.estimates[each.name].value for each in self.candidates} | self.settled
        measured = dict.fromkeys(self.screened, self.search.screen) | dict.fromkeys(self.settled, 1.0)
        return Scores(importance, self.base_nll, self.nll, self.zero, measured, self.screened)

    def _bound(self, candidate: Candidate) -> float:
        estimate = self.estimates[candidate.name]
        above = estimate.value - self.zero
        # Where removal helps there is no share to trust, and no need to find who helps most.
        return self.zero + above * self.search.bound(estimate) if above > 0 else estimate.value

    def _screen(self, candidates: Sequence[Candidate]) -> None:
        if not candidates:
            return
        scores = self.score(candidates, self.search.screen)
        self.zero = scores.zero
        for each in candidates:
            self.screened[each] = value = scores.importance[each]
            old = self.estimates.get(each.name)
            if old is None or old.full is None or old.paired is None:
                self.estimates[each.name] = _Estimate(value, self.search.noise)
            else:
                moved = old.full + value - old.paired
                noise = self.search.paired_noise
                self.estimates[each.name] = replace(old, value=moved, trust=noise, num_near=0, num_far=0)

    def _settle(self, candidate: Candidate) -> None:
        scores = self.score([candidate], 1.0)
        value = self.settled[candidate] = scores.importance[candidate]
        self.base_nll, self.zero = scores.base_nll, scores.zero
        self.nll |= scores.nll
        if self.zero < value < self.promised[candidate] and value <= min(self.settled.values()):
            unseen = [each for each in self.candidates if each not in self.screened]
            self._screen([each for each in unseen if self._is_near(each) == self._is_near(candidate)])

    def _is_near(self, candidate: Candidate) -> bool:
        return self.last is not None and abs(candidate.block - self.last) <= self.search.reach


def _distance(name: str, block: int) -> int:
    return abs(Candidate.parse(name).block - block)
