"""Progressive search that measures again only what may have become the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lit_prune.errors import LitPruneError
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.searches.order import SEARCHES, Round, Search


@dataclass(frozen=True)
class _Estimate:
    """What is believed of a candidate's score."""

    value: float
    screened: float  # what the screened share of the tokens said when `value` was measured
    on_all: bool  # whether `value` was measured on all tokens itself
    lost_neighbour: bool = False  # whether a block within reach lost a sublayer since
    num_far: int = 0  # removals farther off since


@SEARCHES.register("lazy")
@dataclass(frozen=True)
class Lazy(Search):
    """Keep the scores of earlier rounds, and measure the head of the queue until nothing behind it can be better.

    All candidates are screened once, on a share of the tokens. From then on a removal changes the scores of blocks
    nearby, and hardly those farther off. So each score has a lower bound: `near` of itself after a removal within
    `reach` blocks, `far` of itself after one elsewhere (n of them count like the square root of n, as scores rise and
    fall), and `trust` of itself where only a share of the tokens was asked.

    The candidate with the lowest bound is looked at, until the best that was measured on all tokens is no higher than
    any bound, or, after `patience` of them, than any score. One that lost a neighbour is screened first: what is added
    to its earlier score is the difference to what the same tokens said then, so that what is peculiar to them cancels.
    The others are measured on all tokens at once, as they moved by less than a screening errs. Where removal helps, the
    first that is found to help is taken.

    With bounds that hold and endless patience, it removes what a progressive search removes. The defaults are tighter
    than that, so that a search costs about what scoring all candidates once does; the page on what searches cost
    shows what it finds then.

    The order is disturbed where the best of the round fell below its bound although it lost no neighbour. Then all
    others are screened again, unless fewer than an eighth of the candidates went since that was last done; so the cost
    in passes grows like the number of candidates, and not like its square.

    The plan tells which candidates were measured in each round, on which share of the tokens, and where the order was
    disturbed.

    Args:
        screen: Share of the calibration batches to screen on.
        near: Share of a score that is left at least when a block within `reach` lost a sublayer.
        far: Share of a score that is left at least after any other removal.
        trust: Share of a screened score that is left at least on all tokens.
        reach: The distance at which a removal is felt, in blocks.
        patience: Number of candidates measured on all tokens in a round after which scores are taken as they are,
            without their bounds.

    Raises:
        LitPruneError: A share is not above 0 and up to 1, `reach` is negative, or `patience` is below 1.
    """

    within_epoch = True

    screen: float = 0.25
    near: float = 0.3
    far: float = 0.97
    trust: float = 0.95
    reach: int = 2
    patience: int = 4

    def __post_init__(self) -> None:
        for name in ("screen", "near", "far", "trust"):
            if not 0 < getattr(self, name) <= 1:
                raise LitPruneError(f"{name} is a share above 0 and up to 1; found {getattr(self, name)}")
        if self.reach < 0:
            raise LitPruneError(f"reach is a number of blocks, 0 or more; found {self.reach}")
        if self.patience < 1:
            raise LitPruneError(f"patience is a number of candidates, 1 or more; found {self.patience}")

    def __call__(self, score: Round, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score until the best is found; what was not measured keeps its estimate."""
        rounds = enumerate(reversed(history), start=1)
        sweeps = (number for number, step in rounds if 2 * len(step.measured) > len(step.scores))
        may_sweep = next(sweeps, len(history)) >= len(candidates) / 8
        return _LazyRound(self, score, candidates, self._estimates(candidates, history), may_sweep).run()

    def _estimates(self, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> dict[str, _Estimate]:
        found: dict[str, _Estimate] = {}
        for step in history:
            for name, share in step.measured.items():
                found[name] = _Estimate(step.scores[name], step.screened[name], share == 1)
            for name, estimate in found.items():
                if abs(Candidate.parse(name).block - step.removed.block) <= self.reach:
                    found[name] = replace(estimate, lost_neighbour=True)
                else:
                    found[name] = replace(estimate, num_far=estimate.num_far + 1)
        return {candidate.name: found[candidate.name] for candidate in candidates if candidate.name in found}

    def bound(self, estimate: _Estimate) -> float:
        """The share of an estimate below which the true score hardly lies by now."""
        far: float = self.far ** math.sqrt(estimate.num_far)
        return far * (1 if estimate.on_all else self.trust) * (self.near if estimate.lost_neighbour else 1)


@dataclass
class _LazyRound:
    """One round of a lazy search."""

    search: Lazy
    score: Round
    candidates: Sequence[Candidate]
    estimates: dict[str, _Estimate]
    may_sweep: bool
    disturbed: bool = False
    measured: dict[Candidate, float] = field(default_factory=dict)
    screened: dict[Candidate, float] = field(default_factory=dict)
    settled: dict[Candidate, float] = field(default_factory=dict)
    nll: dict[Candidate, float] = field(default_factory=dict)
    base_nll: float | None = None
    zero: float = 0.0

    def run(self) -> Scores:
        self._screen([candidate for candidate in self.candidates if candidate.name not in self.estimates])
        while (head := self._head()) is not None:
            if self.estimates[head.name].lost_neighbour:
                self._screen([head])
            else:
                self._settle(head)
        importance = {candidate: self.estimates[candidate.name].value for candidate in self.candidates}
        return Scores(importance, self.base_nll, self.nll, self.zero, self.measured, self.screened, self.disturbed)

    def _head(self) -> Candidate | None:
        """The candidate with the lowest bound; None where nothing can be better than the best that is settled."""
        best = min(self.settled.values(), default=math.inf)
        bounds = {candidate: self._bound(candidate) for candidate in self.candidates if candidate not in self.settled}
        rest = [candidate for candidate, bound in bounds.items() if bound < best]
        return min(rest, key=lambda candidate: (bounds[candidate], candidate), default=None)

    def _bound(self, candidate: Candidate) -> float:
        estimate = self.estimates[candidate.name]
        above = estimate.value - self.zero
        # Where removal helps there is no share to trust, and no need to find who helps most.
        if above <= 0 or len(self.settled) >= self.search.patience:
            return estimate.value
        return self.zero + above * self.search.bound(estimate)

    def _screen(self, candidates: Sequence[Candidate]) -> None:
        if not candidates:
            return
        scores = self.score(candidates, self.search.screen)
        self.zero = scores.zero
        for candidate, value in scores.importance.items():
            old = self.estimates.get(candidate.name)
            corrected = value if old is None else old.value + value - old.screened
            self.estimates[candidate.name] = _Estimate(corrected, value, on_all=False)
            self.screened[candidate], self.measured[candidate] = value, self.search.screen

    def _settle(self, candidate: Candidate) -> None:
        """Measure on all tokens; where the best has fallen below its bound, screen what was not looked at."""
        promised = self._bound(candidate)
        if candidate not in self.screened:
            # A part of what is measured anyway.
            self.screened |= self.score([candidate], self.search.screen).importance
        scores = self.score([candidate])
        value = scores.importance[candidate]
        is_best = value < min(self.settled.values(), default=math.inf)
        surprises = is_best and self.zero < value < promised and self.measured.get(candidate) is None
        self.estimates[candidate.name] = _Estimate(value, self.screened[candidate], on_all=True)
        self.measured[candidate], self.settled[candidate] = 1.0, value
        self.base_nll, self.zero = scores.base_nll, scores.zero
        self.nll |= scores.nll
        if surprises:
            self.disturbed = True
            if self.may_sweep:
                self.may_sweep = False
                self._screen([other for other in self.candidates if other not in self.measured])
