"""Mute sublayers for a while, remove them for good. Decides nothing and measures nothing."""

from lit_prune.surgery.compact import closable_blocks, compact, compacted
from lit_prune.surgery.config import (
    describe,
    make_biases,
    make_recorded_biases,
    record_bias,
    record_removal,
    recorded_biases,
    remember,
    set_cache,
    stock_config,
)
from lit_prune.surgery.mute import evaluating, mute
from lit_prune.surgery.optimizers import cut_groups, require_forgetful
from lit_prune.surgery.outputs import (
    added_to_stream,
    first_tensor,
    hidden_states,
    is_linear,
    output_projections,
    run_few_tokens,
)
from lit_prune.surgery.proof import require_understood
from lit_prune.surgery.remove import put_back, remove, removed_sublayers, require_recorded
from lit_prune.surgery.sharded import is_sharded, reshard
from lit_prune.surgery.sharing import sharing_copy
from lit_prune.surgery.tombstones import are_aside, set_tombstones_aside, tombstones, without_tombstones

__all__ = [
    "added_to_stream",
    "are_aside",
    "closable_blocks",
    "compact",
    "compacted",
    "cut_groups",
    "describe",
    "evaluating",
    "first_tensor",
    "hidden_states",
    "is_linear",
    "is_sharded",
    "make_biases",
    "make_recorded_biases",
    "mute",
    "output_projections",
    "put_back",
    "record_bias",
    "record_removal",
    "recorded_biases",
    "remember",
    "remove",
    "removed_sublayers",
    "require_forgetful",
    "require_recorded",
    "require_understood",
    "reshard",
    "run_few_tokens",
    "set_cache",
    "set_tombstones_aside",
    "sharing_copy",
    "stock_config",
    "tombstones",
    "without_tombstones",
]
