"""The engine of measuring: what-if losses over one set of tokens, and statistics of one pass.

Removes nothing and decides nothing.
"""

from lit_prune.measure.apart import require_apart
from lit_prune.measure.batches import (
    IGNORED,
    input_ids_of,
    labels_of,
    model_inputs,
    next_labels,
    on_device,
    predicts,
    read_batches,
    tensors_of,
)
from lit_prune.measure.divergence import AGREEMENTS, Divergence, disagreement, kl_divergence, total_variation
from lit_prune.measure.fingerprints import inputs_fingerprint, model_fingerprints
from lit_prune.measure.gradients import loss_gradients, weights_of
from lit_prune.measure.journal import Journal
from lit_prune.measure.losses import (
    Losses,
    hint_if_implausible,
    in_parts,
    mean_loss,
    perplexity_of,
    sequence_losses,
)
from lit_prune.measure.objective import logits_of, objective_of
from lit_prune.measure.one_pass import counted_positions, is_run_of_blocks, stream_means
from lit_prune.measure.portion import Portion
from lit_prune.measure.runner import Compute, Figure, Runner
from lit_prune.measure.shares import SharedJournal, share_of_rows, shares_of
from lit_prune.measure.trace import Trace
from lit_prune.measure.what_if import Progress, WhatIf

__all__ = [
    "AGREEMENTS",
    "IGNORED",
    "Compute",
    "Divergence",
    "Figure",
    "Journal",
    "Losses",
    "Portion",
    "Progress",
    "Runner",
    "SharedJournal",
    "Trace",
    "WhatIf",
    "counted_positions",
    "disagreement",
    "hint_if_implausible",
    "in_parts",
    "input_ids_of",
    "inputs_fingerprint",
    "is_run_of_blocks",
    "kl_divergence",
    "labels_of",
    "logits_of",
    "loss_gradients",
    "mean_loss",
    "model_fingerprints",
    "model_inputs",
    "next_labels",
    "objective_of",
    "on_device",
    "perplexity_of",
    "predicts",
    "read_batches",
    "require_apart",
    "sequence_losses",
    "share_of_rows",
    "shares_of",
    "stream_means",
    "tensors_of",
    "total_variation",
    "weights_of",
]
