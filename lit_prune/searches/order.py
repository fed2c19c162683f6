"""In which order: which candidates to score in this round, pure over a score function.

A search holds no state of its own, so that it can stop and go on after any removal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.registry import Registry

SEARCHES: Registry = Registry("search")


class ScoreFunction(Protocol):
    """Scores candidates on the model as it is, on the first `share` of the calibration batches."""

    def __call__(self, candidates: Sequence[Candidate], share: float = 1.0) -> Scores:
        """Lower is removed first."""
        ...


class Search(Protocol):
    """Gives the scores to choose the next removal from."""

    def __call__(self, score: ScoreFunction, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score what must be scored now; `candidates` are still in the model, `history` holds the removals so far."""
        ...


@SEARCHES.register("progressive")
class Progressive:
    """Score every candidate again in each round, on the model without what went before."""

    def __call__(self, score: ScoreFunction, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """One sweep over all candidates."""
        return score(candidates)


@SEARCHES.register("one_shot")
class OneShot:
    """Score every candidate once, on the dense model, and remove in that order."""

    def __call__(self, score: ScoreFunction, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """One sweep in the first round; the plan's own record of it afterwards."""
        known = history[0].scores if history else {}
        if not all(candidate.name in known for candidate in candidates):
            return score(candidates)
        return Scores({candidate: known[candidate.name] for candidate in candidates})
