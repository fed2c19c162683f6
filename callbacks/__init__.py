"""Callbacks of lit-prune: adapters to Lightning's Trainers and to transformers'. What they do is decided below."""

from .before_after import BeforeAfterCallback
from .hf_prune import HfPruneCallback
from .sublayer_analysis import SublayerAnalysisCallback
from .sublayer_prune import SublayerPruneCallback

__all__ = ["BeforeAfterCallback", "HfPruneCallback", "SublayerAnalysisCallback", "SublayerPruneCallback"]
