"""What a scorer is: a callable that says how important each candidate is. Lower is removed first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from lit_prune.measure import WhatIf
from lit_prune.plan import PruneStep, Registry
from lit_prune.plan.prune_plan import Candidate, Scores

SCORERS = Registry("scorer")


class Scorer:
    """Scores candidates on the model as it is now.

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
