"""The one step of pruning, and a model pruned without training. Scores, order and mending are decided elsewhere."""

from lit_prune.pruning.applied import apply_plan, compensate_plan, refit
from lit_prune.pruning.dialled import dial
from lit_prune.pruning.expected import expected_of, expected_search
from lit_prune.pruning.fronts import front_of
from lit_prune.pruning.offline import describe_run, prune, require_shardable
from lit_prune.pruning.progress import SearchBar, progress_bar
from lit_prune.pruning.pruner import Pruner
from lit_prune.pruning.speculative import set_draft_length, speculative

__all__ = [
    "Pruner",
    "SearchBar",
    "apply_plan",
    "compensate_plan",
    "describe_run",
    "dial",
    "expected_of",
    "expected_search",
    "front_of",
    "progress_bar",
    "prune",
    "refit",
    "require_shardable",
    "set_draft_length",
    "speculative",
]
