"""In which order sublayers go, and how much is to go. Pure over a score function: touches no model."""

from lit_prune.searches.budget import NOUNS, ROUNDING, Budget, Quota, outcome_in_words, require_limits, require_share
from lit_prune.searches.draws import Draws
from lit_prune.searches.goal import Goal, unit_options
from lit_prune.searches.lazy import Lazy
from lit_prune.searches.order import SEARCHES, OneShot, Progressive, Round, Search, SequenceLosses
from lit_prune.searches.planned import Planned
from lit_prune.searches.portfolio import Portfolio
from lit_prune.searches.schedule import PerEpoch, Schedule
from lit_prune.searches.whole import Contiguous, Evolutionary, Refine

__all__ = [
    "NOUNS",
    "ROUNDING",
    "SEARCHES",
    "Budget",
    "Contiguous",
    "Draws",
    "Evolutionary",
    "Goal",
    "Lazy",
    "OneShot",
    "PerEpoch",
    "Planned",
    "Portfolio",
    "Progressive",
    "Quota",
    "Refine",
    "Round",
    "Schedule",
    "Search",
    "SequenceLosses",
    "outcome_in_words",
    "require_limits",
    "require_share",
    "unit_options",
]
