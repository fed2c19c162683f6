"""Searches decide which candidates are scored in a round, pure over a score function.

A search holds no state of its own, so that it can stop and go on after any removal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_prune.plan import Candidate, PruneStep, Registry, Scores

SEARCHES = Registry("search")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SequenceLosses:
    """The model's losses of every sequence of some batches, all processes' together.

    Attributes:
        without: Loss sums (nats) without each candidate, by number of the batch, float64 [sequences].
        tokens: How many tokens are predicted in each sequence, float64 [sequences]; sequences without any are left out.
    """

    without: Mapping[Candidate, Mapping[int, Floats]]
    tokens: Mapping[int, Floats]


class Round(Protocol):
    """What a search may ask in one round.

    Attributes:
        wanted: What is still to be saved, in the budget's unit; infinite where only a ceiling limits it.
        blocks: Numbers of the blocks that the model still has, in order.
        num_batches: The number of calibration batches.
    """

    wanted: float
    blocks: Sequence[int]
    num_batches: int

    def __call__(
        self, candidates: Sequence[Candidate], share: float | range = 1.0, *, without: Sequence[Candidate] = ()
    ) -> Scores:
        """Score on the first `share` of the calibration batches, or on those numbered, perhaps without some already."""

    def losses(
        self, candidates: Sequence[Candidate], batches: range, *, without: Sequence[Candidate] = ()
    ) -> SequenceLosses:
        """Measure the model's loss on some of the calibration batches, by number, perhaps without some candidates."""

    def saved(self, candidate: Candidate) -> float:
        """What a candidate, perhaps a set, would save on its own, in the budget's unit."""

    def reaches(self, candidates: Iterable[Candidate]) -> bool:
        """Whether all of these together save what is wanted."""


class Search:
    """Gives the scores to choose the next removal from.

    A user's own search may be a subclass, or any function or object that is called the same way.

    Attributes:
        within_epoch: Whether only removals of the same training epoch are its history, as training moves all scores.
        held_out: Share of the calibration batches, the last of them, that judge what is found on the others; text of
            other documents is best.
    """

    within_epoch: ClassVar[bool] = False
    held_out: float = 0.0

    def num_held_out(self, num_batches: int) -> int:
        """How many of the batches judge, one at least where any do."""
        return min(max(1, round(self.held_out * num_batches)), num_batches - 1) if self.held_out else 0

    def __call__(self, score: Round, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score what must be scored now; `candidates` are still in the model, `history` holds the removals so far."""
        raise NotImplementedError


@SEARCHES.register("progressive")
class Progressive(Search):
    """Score every candidate again in each round, on the model without what went before."""

    def __call__(self, score: Round, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """One sweep over all candidates."""
        return score(candidates)


@SEARCHES.register("one_shot")
class OneShot(Search):
    """Score every candidate once, on the dense model, and remove in that order."""

    def __call__(self, score: Round, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """One sweep in the first round; the plan's own record of it afterwards."""
        known = history[0].scores if history else {}
        if not all(candidate.name in known for candidate in candidates):
            return score(candidates)
        return Scores({candidate: known[candidate.name] for candidate in candidates})
