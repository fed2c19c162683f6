"""In which order sublayers go, and how much is to go. Pure over a score function: touches no model."""

from lit_prune.searches.budget import NOUNS, ROUNDING, Budget, outcome_in_words, require_limits, require_share
from lit_prune.searches.lazy import Lazy
from lit_prune.searches.order import SEARCHES, OneShot, Progressive, ScoreFunction, Search
from lit_prune.searches.schedule import PerEpoch, Quota, Schedule

__all__ = [
    "NOUNS",
    "ROUNDING",
    "SEARCHES",
    "Budget",
    "Lazy",
    "OneShot",
    "PerEpoch",
    "Progressive",
    "Quota",
    "Schedule",
    "ScoreFunction",
    "Search",
    "outcome_in_words",
    "require_limits",
    "require_share",
]
