"""What a scorer is: a callable that says how important each candidate is. Lower is removed first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lit_prune.measure import WhatIf
from lit_prune.plan import PruneStep, Registry
from lit_prune.plan.prune_plan import Candidate, Scores

SCORERS = Registry("scorer")


class Scorer(Protocol):
    """Scores candidates on the model as it is now.

    Four attributes are looked for, and may be absent:

    - `together = True`: one call for all candidates costs what a call for one does, or means something else. A round
      then makes one call, whatever the search asks for.
    - `gradients = True`: it wants gradients of weights, which a model that is sharded over processes does not give.
    - `protected_blocks(num_blocks)`: blocks of the original model that the method never removes, 0-based.
    - `fingerprint(model)`: text that differs where data of its own decides other scores, for a search that goes on.
    """

    def __call__(self, what_if: WhatIf, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """Score every candidate; `history` holds the removals so far, with their evidence."""
        ...
