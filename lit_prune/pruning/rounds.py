"""What a search asks of a model in one round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_prune.anatomy import classifies, find_sublayers
from lit_prune.costs import Prices
from lit_prune.errors import MeasureError
from lit_prune.measure import WhatIf, hint_if_implausible, input_ids_of
from lit_prune.plan import Candidate, PruneStep, Scores
from lit_prune.scorers import Scorer
from lit_prune.searches import SequenceLosses
from lit_prune.surgery import mute


@dataclass
class ModelRound:
    """The `searches.Round` of a real model; `candidates` are all that may go now."""

    scorer: Scorer
    what_if: WhatIf
    prices: Prices
    candidates: Sequence[Candidate]
    history: Sequence[PruneStep]
    wanted: float

    def __post_init__(self) -> None:
        self.anatomy = find_sublayers(self.what_if.model)
        self.blocks: Sequence[int] = self.anatomy.blocks
        self.num_batches = len(self.what_if.batches)
        self.what_if.shares = self._shares
        self._is_first_score = not self.history
        self._known: dict[tuple[float | range, Candidate], Scores] = {}

    def __call__(
        self, candidates: Sequence[Candidate], share: float | range = 1.0, *, without: Sequence[Candidate] = ()
    ) -> Scores:
        """See `searches.Round`."""
        out = Candidate.together(without)
        left = [candidate for candidate in self.candidates if candidate not in without]
        # Of those that are scored together, a part costs as much as all, or would mean something else.
        if not self.scorer.together or not set(candidates) <= set(left):
            return self._score(candidates, share, out)
        if (share, out) not in self._known:
            self._known[share, out] = self._score(left, share, out)
        scores = self._known[share, out]
        return replace(scores, importance={candidate: scores.importance[candidate] for candidate in candidates})

    def _score(self, candidates: Sequence[Candidate], share: float | range, out: Candidate) -> Scores:
        model = self.what_if.model
        with self._without(out), self.what_if.narrowed(share):
            scores = require_scores(self.scorer(self.what_if, candidates, self.history), "scorer", candidates)
        if self._is_first_score and scores.base_nll is not None and not out.sublayers and not classifies(model):
            self._is_first_score = False
            hint_if_implausible(scores.base_nll, model)
        return scores

    def _shares(self, candidates: Sequence[Candidate]) -> dict[Candidate, float]:
        freed = {candidate: self.prices.freed(self.anatomy, candidate.sublayers) for candidate in candidates}
        return {candidate: saved / self.prices.total for candidate, saved in freed.items()}

    def _without(self, out: Candidate) -> AbstractContextManager[None]:
        return mute(self.what_if.model, out.sublayers, anatomy=self.anatomy) if out.sublayers else nullcontext()

    def with_margins(self, scores: Scores) -> Scores:
        """Add the margins of those that were measured on all tokens one after the other; nothing is measured again."""
        measured = [candidate for candidate, share in scores.measured.items() if share == 1]
        if scores.margins or len(measured) < 2 or not self.what_if.remembers:
            return scores
        return replace(scores, margins=self(measured).margins)

    def losses(
        self, candidates: Sequence[Candidate], batches: range, *, without: Sequence[Candidate] = ()
    ) -> SequenceLosses:
        """See `searches.Round`."""
        with self._without(Candidate.together(without)), self.what_if.narrowed(batches):
            found = self.what_if.losses(candidates)
        rows = torch.stack([found.tokens.to(found.base_sequences), *found.sequences.values()])
        sizes = [len(input_ids_of(self.what_if.batches[batch])) for batch in batches]
        tokens, *others = zip(*(self._gathered(part) for part in torch.split(rows, sizes, dim=1)), strict=True)
        return SequenceLosses(
            {gone: dict(zip(batches, each, strict=True)) for gone, each in zip(found.sequences, others, strict=True)},
            dict(zip(batches, tokens, strict=True)),
        )

    def _gathered(self, rows: Tensor) -> NDArray[np.float64]:
        """Figures [figures, sequences] of all processes' sequences of a batch; the first are numbers of tokens."""
        rows, processes = rows[:, rows[0] > 0].double().cpu(), self.what_if.processes
        numbers = torch.zeros(processes.size, dtype=torch.int64)
        numbers[processes.rank] = rows.shape[1]
        numbers = processes.sum(numbers)
        first = int(numbers[: processes.rank].sum())
        whole = torch.zeros(len(rows), int(numbers.sum()), dtype=torch.float64)
        whole[:, first : first + rows.shape[1]] = rows
        return processes.sum(whole).numpy()

    def saved(self, candidate: Candidate) -> float:
        """See `searches.Round`."""
        return self.prices.freed(self.anatomy, candidate.sublayers)

    def reaches(self, candidates: Iterable[Candidate]) -> bool:
        """See `searches.Round`."""
        return self.saved(Candidate.together(candidates)) >= self.wanted


def require_scores(found: object, noun: str, wanted: Sequence[Candidate]) -> Scores:
    """What a `scorer` gave for all wanted candidates, or a `search` for some: of these alone, and in plain numbers."""
    if not isinstance(found, Scores):
        raise MeasureError(f"a {noun} gives lit_prune.plan.Scores; this one gave a {type(found).__name__}")
    own = found.importance if isinstance(found.importance, Mapping) else {}
    missing = [candidate.name for candidate in wanted if candidate not in own]
    if missing if noun == "scorer" else len(missing) == len(wanted):
        names = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        raise MeasureError(f"the {noun} gave no score of {names}: {len(missing)} of {len(wanted)} are missing")
    base = None if found.base_nll is None else _number(found.base_nll, f"the {noun}'s loss of the model as it is")
    scored = {candidate: own[candidate] for candidate in wanted if candidate in own}
    return replace(
        found,
        importance={gone: _number(value, f"the {noun}'s score of {gone.name}") for gone, value in scored.items()},
        base_nll=base,
        nll={gone: _number(value, f"the {noun}'s loss without {gone.name}") for gone, value in found.nll.items()},
        zero=_number(found.zero, f"the {noun}'s score of what changes nothing"),
    )


def _number(value: Any, what: str) -> float:
    try:
        number = float(value) if not isinstance(value, str | bytes | bool) else math.nan
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if math.isnan(number):
        raise MeasureError(f"{what} is {value!r}, which is no number: nothing can be put in order by it")
    return number
