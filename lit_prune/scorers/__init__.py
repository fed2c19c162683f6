"""How important is a candidate? Lower is removed first. Scorers measure through `lit_prune.measure` and remove nothing.

A new one is a factory decorated with `SCORERS.register`, or is passed by its import path.
"""

from lit_prune.scorers.base import SCORERS, Scorer
from lit_prune.scorers.impact import NormalisedRelativeImpact, Perplexity, relative_impact
from lit_prune.scorers.random_order import RandomOrder

__all__ = ["SCORERS", "NormalisedRelativeImpact", "Perplexity", "RandomOrder", "Scorer", "relative_impact"]
