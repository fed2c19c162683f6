"""Lightning callbacks of lit-prune: adapters to any Trainer. What they decide is decided in the rooms below."""

from lit_prune.callbacks.before_after import BeforeAfterCallback
from lit_prune.callbacks.sublayer_analysis import SublayerAnalysisCallback
from lit_prune.callbacks.sublayer_prune import SublayerPruneCallback

__all__ = ["BeforeAfterCallback", "SublayerAnalysisCallback", "SublayerPruneCallback"]
