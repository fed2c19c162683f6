"""Lightning callbacks of lit-prune: adapters to any Trainer. What they do is decided in the packages below."""

from .before_after import BeforeAfterCallback
from .sublayer_analysis import SublayerAnalysisCallback
from .sublayer_prune import SublayerPruneCallback

__all__ = ["BeforeAfterCallback", "SublayerAnalysisCallback", "SublayerPruneCallback"]
