"""What-if losses over one set of tokens, and what sublayers cost. Removes nothing and decides nothing."""

from lit_prune.measure.costs import NORMALISERS, Costs, candidate_shares, count_costs
from lit_prune.measure.inventory import Inventory, SublayerFigures, take_inventory
from lit_prune.measure.journal import Journal, weights_fingerprint
from lit_prune.measure.losses import evaluating, input_ids_of, labels_of, model_inputs, on_device, sequence_losses
from lit_prune.measure.progress import progress_bar
from lit_prune.measure.proof import require_understood
from lit_prune.measure.what_if import Losses, Progress, Reduce, WhatIf

__all__ = [
    "NORMALISERS",
    "Costs",
    "Inventory",
    "Journal",
    "Losses",
    "Progress",
    "Reduce",
    "SublayerFigures",
    "WhatIf",
    "candidate_shares",
    "count_costs",
    "evaluating",
    "input_ids_of",
    "labels_of",
    "model_inputs",
    "on_device",
    "progress_bar",
    "require_understood",
    "sequence_losses",
    "take_inventory",
    "weights_fingerprint",
]
