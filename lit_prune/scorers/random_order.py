"""The score that knows nothing, to compare with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lit_prune.measure import WhatIf
from lit_prune.plan import PruneStep
from lit_prune.plan.prune_plan import Candidate, Scores
from lit_prune.scorers.base import SCORERS, Scorer


@SCORERS.register("random")
@dataclass(frozen=True)
class RandomOrder(Scorer):
    """Uniform scores in [0, 1): no measurement, the same for the same seed and number of removals so far."""

    seed: int = 0

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Draw one score per candidate."""
        draw = random.Random(f"{self.seed}/{len(history)}")
        return Scores({candidate: draw.random() for candidate in sorted(candidates)})
