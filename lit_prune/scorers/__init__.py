"""How important is a candidate? Lower is removed first. Scorers measure through `lit_prune.measure` and remove nothing.

A new one is a factory decorated with `SCORERS.register`, or is passed by its import path.
"""

from lit_prune.scorers.base import SCORERS, RandomOrder, Scorer
from lit_prune.scorers.impact import Acceptance, NormalisedRelativeImpact, OutputDivergence, Perplexity, relative_impact
from lit_prune.scorers.sampled import Regression, Shapley
from lit_prune.scorers.stream import AngularDistance, BlockInfluence, CosineDistance, RelativeNorm, Sensitivity
from lit_prune.scorers.task import Task
from lit_prune.scorers.weights import Magnitude, Taylor

__all__ = [
    "SCORERS",
    "Acceptance",
    "AngularDistance",
    "BlockInfluence",
    "CosineDistance",
    "Magnitude",
    "NormalisedRelativeImpact",
    "OutputDivergence",
    "Perplexity",
    "RandomOrder",
    "Regression",
    "RelativeNorm",
    "Scorer",
    "Sensitivity",
    "Shapley",
    "Task",
    "Taylor",
    "relative_impact",
]
