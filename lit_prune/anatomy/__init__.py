"""Where the sublayers of a decoder-only Hugging Face model are. Knows structure only: changes and measures nothing."""

from lit_prune.anatomy.blocks import experts_per_token, is_norm, routed_parameters
from lit_prune.anatomy.caches import cache_of, cache_option
from lit_prune.anatomy.layouts import (
    AFTER_BRANCH,
    BLOCK_LISTS,
    BLOCK_NUMBERS,
    CORRECTIONS,
    LINEAR,
    PARALLEL_FORMS,
    POST_NORM,
    SANDWICH,
    SCALE,
    Layout,
)
from lit_prune.anatomy.parameters import count_parameters, is_adapted, own_parameters, own_tensors
from lit_prune.anatomy.purpose import CLASSIFIER, NO_TOKENS, classifies, gives_no_tokens, require_tokens_out
from lit_prune.anatomy.record import RECORD_KEY, Record
from lit_prune.anatomy.structure import (
    context_length,
    decoder_config,
    find_sublayers,
    language_model,
    require_no_prompt,
)
from lit_prune.anatomy.stubs import SublayerStub
from lit_prune.anatomy.sublayers import Anatomy, Part, Sublayer

__all__ = [
    "AFTER_BRANCH",
    "BLOCK_LISTS",
    "BLOCK_NUMBERS",
    "CLASSIFIER",
    "CORRECTIONS",
    "LINEAR",
    "NO_TOKENS",
    "PARALLEL_FORMS",
    "POST_NORM",
    "RECORD_KEY",
    "SANDWICH",
    "SCALE",
    "Anatomy",
    "Layout",
    "Part",
    "Record",
    "Sublayer",
    "SublayerStub",
    "cache_of",
    "cache_option",
    "classifies",
    "context_length",
    "count_parameters",
    "decoder_config",
    "experts_per_token",
    "find_sublayers",
    "gives_no_tokens",
    "is_adapted",
    "is_norm",
    "language_model",
    "own_parameters",
    "own_tensors",
    "require_no_prompt",
    "require_tokens_out",
    "routed_parameters",
]
