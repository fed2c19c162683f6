"""The order of a plan that was made before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_prune.errors import BudgetError
from lit_prune.plan import Candidate, PrunePlan, PruneStep, Scores
from lit_prune.searches.order import SEARCHES, Round, Search


@SEARCHES.register("planned")
@dataclass(frozen=True)
class Planned(Search):
    """Remove what a plan says, in its order, and measure nothing.

    Blocks that went at once go as two sublayers.

    Args:
        plan: File of a plan, or a folder that holds `prune_plan.json`.

    Raises:
        PlanError: There is no such file, or it is no readable plan.
    """

    plan: str
    _order: tuple[Candidate, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        order = tuple(Candidate((sublayer,)) for sublayer in PrunePlan.load(self.plan).removed)
        object.__setattr__(self, "_order", order)

    def __call__(self, score: Round, candidates: Sequence[Candidate], history: Sequence[PruneStep]) -> Scores:
        """The next one, alone."""
        left = [candidate for candidate in self._order if candidate in candidates]
        if not left:
            raise BudgetError(f"the plan {self.plan} has nothing left to remove, and more is asked for")
        return Scores({left[0]: 0.0})
