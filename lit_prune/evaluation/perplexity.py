"""Perplexity over windows of tokens: summed float32 losses over counted tokens, exact for any batch size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from lit_prune.errors import DataError, MeasureError
from lit_prune.measure import labels_of, logits_of, on_device, perplexity_of, sequence_losses
from lit_prune.plan import error_of_ratio
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
        sums: Sum of the token losses of every window in which tokens are predicted, in nats.
        tokens: Predicted tokens of each of these.
        sha256: Fingerprint of the windows: what is measured on the same is compared window by window.

    Example:
        >>> round(TokenLoss(nll=2.0, num_tokens=31, num_windows=1, window=32).ppl, 3)
        7.389
    """

    nll: float
    num_tokens: int
    num_windows: int
    window: int
    error: float = 0.0
    sums: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    sha256: str = ""

    @property
    def ppl(self) -> float:
        """The perplexity, exp(nll); infinite where that exceeds a float."""
        return perplexity_of(self.nll)

    def error_of_rise(self, before: TokenLoss) -> float | None:
        """Standard error of how far `nll` is above another's on the same windows, in nats; None if they are not known.

        Example:
            >>> before = TokenLoss(2.0, 20, 2, 11, sums=(18.0, 22.0), tokens=(10, 10), sha256="b1")
            >>> after = TokenLoss(2.5, 20, 2, 11, sums=(23.0, 27.0), tokens=(10, 10), sha256="b1")
            >>> after.error_of_rise(before)
            0.0
        """
        if not self.sums or self.sha256 != before.sha256:
            return None
        rise = self.nll - before.nll
        windows = zip(self.sums, before.sums, self.tokens, strict=True)
        squares = math.fsum((one - two - rise * tokens) ** 2 for one, two, tokens in windows)
        error = error_of_ratio(squares, len(self.sums), self.num_tokens)
        return error if math.isfinite(error) else None


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
    num_windows, window, digest = 0, 0, hashlib.sha256()
    losses: list[float] = []
    counts: list[int] = []
    with evaluating(model):
        for batch in batches:
            here = on_device(batch, model.device)
            labels = labels_of(here)
            sums, tokens = sequence_losses(logits_of(model, here), labels)
            losses += sums[tokens > 0].tolist()
            counts += tokens[tokens > 0].tolist()
            for windows in (here["input_ids"], labels):
                digest.update(str(tuple(windows.shape)).encode() + windows.cpu().numpy().tobytes())
            num_windows += labels.shape[0]
            window = max(window, labels.shape[1])
    nll, num_tokens = math.fsum(losses), sum(counts)
    if not num_tokens:
        raise DataError("perplexity needs predicted tokens; the batches hold none")
    if not math.isfinite(nll):
        raise MeasureError(f"the loss over {num_tokens} tokens is {nll}; the model gives no usable logits")
    mean = nll / num_tokens
    squares = math.fsum((loss - mean * count) ** 2 for loss, count in zip(losses, counts, strict=True))
    error = error_of_ratio(squares, len(losses), num_tokens) if len(losses) > 1 else 0.0
    return TokenLoss(mean, num_tokens, num_windows, window, error, tuple(losses), tuple(counts), digest.hexdigest())
