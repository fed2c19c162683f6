"""What-if losses over one set of tokens, one-pass statistics, and what sublayers cost.

Removes nothing and decides nothing.
"""

from lit_prune.measure.batch_pass import BatchPass
from lit_prune.measure.batches import (
    IGNORED,
    input_ids_of,
    labels_of,
    model_inputs,
    on_device,
    read_batches,
    tensors_of,
)
from lit_prune.measure.costs import NORMALISERS, Costs, candidate_shares, count_costs
from lit_prune.measure.divergence import Divergence, kl_divergence
from lit_prune.measure.fingerprints import inputs_fingerprint, model_fingerprints
from lit_prune.measure.gradients import loss_gradients, weights_of
from lit_prune.measure.head import Compute, logits_of
from lit_prune.measure.inventory import Inventory, SublayerFigures, take_inventory
from lit_prune.measure.journal import Journal
from lit_prune.measure.latency import Latency, inference_options, measure_latency, now
from lit_prune.measure.losses import (
    Losses,
    hint_if_implausible,
    mean_loss,
    perplexity_of,
    sequence_losses,
)
from lit_prune.measure.naive import NaiveWhatIf
from lit_prune.measure.objective import objective_of
from lit_prune.measure.outputs import added_to_stream, first_tensor, is_linear, output_projections
from lit_prune.measure.prices import Prices, price, unit_options
from lit_prune.measure.processes import Processes, SharedJournal
from lit_prune.measure.progress import progress_bar
from lit_prune.measure.proof import require_understood
from lit_prune.measure.stream import counted_positions, is_run_of_blocks, stream_means
from lit_prune.measure.trace import Trace
from lit_prune.measure.what_if import Progress, Reduce, WhatIf
from lit_prune.surgery import evaluating

__all__ = [
    "IGNORED",
    "NORMALISERS",
    "BatchPass",
    "Compute",
    "Costs",
    "Divergence",
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
    "Trace",
    "WhatIf",
    "added_to_stream",
    "candidate_shares",
    "count_costs",
    "counted_positions",
    "evaluating",
    "first_tensor",
    "hint_if_implausible",
    "inference_options",
    "input_ids_of",
    "inputs_fingerprint",
    "is_linear",
    "is_run_of_blocks",
    "kl_divergence",
    "labels_of",
    "logits_of",
    "loss_gradients",
    "mean_loss",
    "measure_latency",
    "model_fingerprints",
    "model_inputs",
    "now",
    "objective_of",
    "on_device",
    "output_projections",
    "perplexity_of",
    "price",
    "progress_bar",
    "read_batches",
    "require_understood",
    "sequence_losses",
    "stream_means",
    "take_inventory",
    "tensors_of",
    "unit_options",
    "weights_of",
]
