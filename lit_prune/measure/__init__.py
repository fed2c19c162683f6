"""What-if losses over one set of tokens, and what sublayers cost. Removes nothing and decides nothing."""

from lit_prune.measure.costs import NORMALISERS, Costs, candidate_shares, count_costs
from lit_prune.measure.inventory import Inventory, SublayerFigures, take_inventory
from lit_prune.measure.journal import Journal, weights_fingerprint
from lit_prune.measure.latency import Latency, inference_options, measure_latency, now
from lit_prune.measure.losses import evaluating, input_ids_of, labels_of, model_inputs, on_device, sequence_losses
from lit_prune.measure.naive import NaiveWhatIf
from lit_prune.measure.prices import Prices, price, unit_options
from lit_prune.measure.processes import Processes, SharedJournal
from lit_prune.measure.progress import progress_bar
from lit_prune.measure.proof import require_understood
from lit_prune.measure.what_if import Losses, Progress, Reduce, WhatIf

__all__ = [
    "NORMALISERS",
    "Costs",
    "Inventory",
    "Journal",
    "Latency",
    "Losses",
    "NaiveWhatIf",
    "Prices",
    "Processes",
    "Progress",
    "Reduce",
    "SharedJournal",
    "SublayerFigures",
    "WhatIf",
    "candidate_shares",
    "count_costs",
    "evaluating",
    "inference_options",
    "input_ids_of",
    "labels_of",
    "measure_latency",
    "model_inputs",
    "now",
    "on_device",
    "price",
    "progress_bar",
    "require_understood",
    "sequence_losses",
    "take_inventory",
    "unit_options",
    "weights_fingerprint",
]
