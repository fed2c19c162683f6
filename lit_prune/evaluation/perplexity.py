"""Perplexity over windows of tokens: summed float32 losses over counted tokens, exact for any batch size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from lit_prune.errors import DataError, MeasureError
from lit_prune.measure import labels_of, logits_of, on_device, perplexity_of, sequence_losses
from lit_prune.surgery import evaluating


@dataclass(frozen=True)
class TokenLoss:
    """A mean token loss and what it was taken over.

    Attributes:
        nll: Mean loss of a predicted token, in nats.
        num_tokens: Predicted tokens; the first of a window is not predicted.
        num_windows: Sequences that were measured.
        window: Tokens in the longest sequence.
        error: Standard error of `nll` in nats, from how the windows differ; 0 with one.

    Example:
        >>> round(TokenLoss(nll=2.0, num_tokens=31, num_windows=1, window=32).ppl, 3)
        7.389
    """

    nll: float
    num_tokens: int
    num_windows: int
    window: int
    error: float = 0.0

    @property
    def ppl(self) -> float:
        """The perplexity, exp(nll); infinite where that exceeds a float."""
        return perplexity_of(self.nll)


def perplexity(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> TokenLoss:
    """Measure a model on batches; its mode is restored afterwards.

    Args:
        model: A causal language model; batches are moved to its device.
        batches: Mappings with `input_ids` [batch, seq], perhaps `labels` (-100 where nothing is predicted) and
            `attention_mask`.

    Raises:
        DataError: No token is predicted, or a batch has no `input_ids`.
        MeasureError: The loss is NaN or infinite.
    """
    nll, num_tokens, num_windows, window = 0.0, 0, 0, 0
    means: list[float] = []
    with evaluating(model):
        for batch in batches:
            here = on_device(batch, model.device)
            labels = labels_of(here)
            sums, tokens = sequence_losses(logits_of(model, here), labels)
            nll += float(sums.sum())
            num_tokens += int(tokens.sum())
            means += (sums / tokens)[tokens > 0].tolist()
            num_windows += labels.shape[0]
            window = max(window, labels.shape[1])
    if not num_tokens:
        raise DataError("perplexity needs predicted tokens; the batches hold none")
    if not math.isfinite(nll):
        raise MeasureError(f"the loss over {num_tokens} tokens is {nll}; the model gives no usable logits")
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return TokenLoss(nll / num_tokens, num_tokens, num_windows, window, error)
