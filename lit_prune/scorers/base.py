"""What a scorer is, and the one that measures nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate, PruneStep, Registry, Scores

SCORERS = Registry("scorer")


class Scorer:
    """Says how important each candidate is in the model as it is now: the least important is removed first.

    A user's own scorer may be a subclass, or any function or object that is called the same way; what it does not have
    of the rest is as here.

    Attributes:
        together: Whether one call for all candidates costs what a call for one does, or means something else. A round
            then makes one call, whatever the search asks for.
        gradients: Whether it wants gradients of weights, which a model that is sharded over processes does not give.
    """

    together: ClassVar[bool] = False
    gradients: ClassVar[bool] = False

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score every candidate; `history` holds the removals so far, with their evidence."""
        raise NotImplementedError

    def protected_blocks(self, num_blocks: int) -> Iterable[int]:
        """Blocks that the method never removes, 0-based, of an original model with so many; none by default."""
        return ()

    def fingerprint(self, model: Any) -> str:
        """Text that differs where data of its own decides other scores, for a search that goes on."""
        return ""


@SCORERS.register("random")
@dataclass(frozen=True)
class RandomOrder(Scorer):
    """Uniform scores in [0, 1): no measurement, the same for the same seed and number of removals so far."""

    seed: int = 0

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Draw one score per candidate."""
        draw = random.Random(f"{self.seed}/{len(history)}")
        return Scores({candidate: draw.random() for candidate in sorted(candidates)})
