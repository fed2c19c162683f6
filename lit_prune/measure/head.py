"""Losses of one pass through the blocks; the head runs on all positions, or on a few at a time to spare memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.errors import MeasureError
from lit_prune.measure.batches import labels_of, model_inputs, next_labels
from lit_prune.measure.losses import sequence_losses, target_losses
from lit_prune.measure.trace import Trace

Compute = Callable[[Callable[[], Tensor]], Tensor]
"""Calls what it is given, which runs the model and returns logits, where and how they are wanted."""

POSITIONS_AT_A_TIME = 64


def logits_of(model: nn.Module, batch: Mapping[str, Any], positions: Tensor | None = None) -> Tensor:
    """Logits [batch, positions, vocab], of all positions when None are named.

    Raises:
        MeasureError: The model gives something else.
    """
    options = {} if positions is None else {"logits_to_keep": positions}
    logits = getattr(model(**model_inputs(model, batch), use_cache=False, **options), "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        found = f"logits of the shape {list(logits.shape)}" if isinstance(logits, Tensor) else "no logits"
        raise MeasureError(f"{type(model).__name__} gives {found}; expected those of next tokens, [batch, seq, vocab]")
    return logits


def pass_losses(
    model: nn.Module, batch: Mapping[str, Tensor], blocks: Sequence[nn.Module], compute: Compute, *, in_parts: bool
) -> Tensor:
    """Loss sums of a batch's sequences.

    Args:
        model: A causal language model.
        batch: With `input_ids` [batch, seq], on the model's device.
        blocks: Of the model.
        compute: Runs the model, perhaps from a stored state and without some sublayers.
        in_parts: Hold the logits of a few positions at a time, where the model's own code can leave out the others.

    Returns:
        Nats, float64 [batch] where the device has it.
    """
    labels = labels_of(batch)
    parts = torch.arange(labels.shape[1], device=labels.device).split(POSITIONS_AT_A_TIME)  # type: ignore[no-untyped-call]
    if not in_parts or len(parts) == 1 or "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return sequence_losses(compute(lambda: logits_of(model, batch)), labels)[0]
    targets = next_labels(labels)
    last = Trace()
    with last.watching(blocks):
        nll = target_losses(compute(lambda: logits_of(model, batch, parts[0])), targets[:, parts[0]])
    # The blocks are done; final norm and head go on from their last state.
    with last.resumed(blocks, len(blocks)):
        for each in parts[1:]:
            nll = nll + target_losses(logits_of(model, batch, each), targets[:, each])
    return nll
