"""Lightning callbacks of lit-prune: adapters to any Trainer. What they decide is decided in the rooms below."""

from .before_after import BeforeAfterCallback
from .sublayer_analysis import SublayerAnalysisCallback
from .sublayer_prune import SublayerPruneCallback

__all__ = ["BeforeAfterCallback", "SublayerAnalysisCallback", "SublayerPruneCallback"]
