"""Logits of a model for a batch, at all positions or at a few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lit_prune.errors import MeasureError
from lit_prune.measure.batches import model_inputs


def logits_of(model: nn.Module, batch: Mapping[str, Any], positions: Tensor | None = None) -> Tensor:
    """Logits of the next tokens, [batch, positions, vocab].

    Args:
        model: A causal language model.
        batch: A batch with `input_ids` [batch, seq], on the model's device.
        positions: The positions that are wanted, int64 [positions]; all when None. The model's `forward` must take
            `logits_to_keep`.

    Raises:
        MeasureError: The model gives something else.
    """
    options = {} if positions is None else {"logits_to_keep": positions}
    logits = getattr(model(**model_inputs(model, batch), use_cache=False, **options), "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        found = f"logits of the shape {list(logits.shape)}" if isinstance(logits, Tensor) else "no logits"
        raise MeasureError(f"{type(model).__name__} gives {found}; expected those of next tokens, [batch, seq, vocab]")
    return logits
