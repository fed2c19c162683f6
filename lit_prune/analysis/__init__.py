"""What a model's sublayers do to the residual stream, what they are worth, and how its logits come about.

Measures and changes nothing; `lit_prune.report` draws what is found.
"""

from lit_prune.analysis.analyse import analyse
from lit_prune.analysis.figures import Analysis, DepthFigures, PathFigures, SublayerFigures
from lit_prune.analysis.lens import lens_logits, lens_sums
from lit_prune.analysis.recorder import Passed, StreamRecorder, Written
from lit_prune.analysis.unraveled import BIASES, EMBEDDING, HeldNorm, Unraveler

__all__ = [
    "BIASES",
    "EMBEDDING",
    "Analysis",
    "DepthFigures",
    "HeldNorm",
    "Passed",
    "PathFigures",
    "StreamRecorder",
    "SublayerFigures",
    "Unraveler",
    "Written",
    "analyse",
    "lens_logits",
    "lens_sums",
]
