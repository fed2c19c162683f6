"""What a search asks of a model in one round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from torch import nn

from lit_prune.anatomy import find_sublayers
from lit_prune.measure import Prices, WhatIf, hint_if_implausible
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.scorers import Scorer
from lit_prune.surgery import mute


class ModelRound:
    """The `searches.Round` of a real model.

    Args:
        model: As it is in this round.
        scorer: Scores its candidates.
        what_if: The measure, over all calibration batches.
        prices: What sublayers cost, in the budget's unit.
        sizes: All that may go now, with what it would save.
        history: The removals so far.
        wanted: See `searches.Round`.
    """

    def __init__(
        self,
        model: nn.Module,
        scorer: Scorer,
        what_if: WhatIf,
        prices: Prices,
        sizes: Mapping[Candidate, float],
        history: Sequence[PruneStep],
        wanted: float,
    ) -> None:
        self.model = model
        self.scorer = scorer
        self.what_if = what_if
        self.prices = prices
        self.candidates = list(sizes)
        self.history = history
        self.wanted = wanted
        self.anatomy = find_sublayers(model)
        self.blocks = self.anatomy.blocks
        self._is_first_score = not history
        self._known: dict[tuple[float, Candidate], Scores] = {}

    def __call__(
        self, candidates: Sequence[Candidate], share: float = 1.0, *, without: Sequence[Candidate] = ()
    ) -> Scores:
        """See `searches.Round`."""
        out = Candidate.together(without)
        left = [each for each in self.candidates if each not in without]
        # Of those that are scored together, a part costs as much as all, or would mean something else.
        if not getattr(self.scorer, "together", False) or not set(candidates) <= set(left):
            return self._score(candidates, share, out)
        if (share, out) not in self._known:
            self._known[share, out] = self._score(left, share, out)
        scores = self._known[share, out]
        return replace(scores, importance={each: scores.importance[each] for each in candidates})

    def _score(self, candidates: Sequence[Candidate], share: float, out: Candidate) -> Scores:
        muted = mute(self.model, out.sublayers, anatomy=self.anatomy) if out.sublayers else nullcontext()
        with muted, self.what_if.narrowed(share):
            scores = self.scorer(self.what_if, candidates, self.history)
        if self._is_first_score and scores.base_nll is not None and not out.sublayers:
            self._is_first_score = False
            hint_if_implausible(scores.base_nll, self.model)
        return scores

    def saved(self, candidate: Candidate) -> float:
        """See `searches.Round`."""
        return self.prices.freed(self.anatomy, candidate.sublayers)

    def reaches(self, candidates: Iterable[Candidate]) -> bool:
        """See `searches.Round`."""
        return self.saved(Candidate.together(candidates)) >= self.wanted
