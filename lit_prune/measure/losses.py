"""Token losses in float32, summed per sequence, so that differences between models are paired."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.anatomy import context_length
from lit_prune.errors import DataError, MeasureError
from lit_prune.loading.devices import exact_dtype
from lit_prune.loading.processes import Processes
from lit_prune.measure.batches import IGNORED, predicts
from lit_prune.plan import Candidate, error_of_ratio

ELEMENTS_AT_A_TIME = (2**18, 2**24)
"""Of logits in float32: on a CPU what its caches hold, elsewhere enough to keep the device busy."""


@dataclass(frozen=True)
class Losses:
    """Losses of the model as it is, and without each candidate, on the same tokens.

    Attributes:
        base: Mean token loss (nats) of the model as it is, over the sequences of all processes.
        without: Mean token loss (nats) without each candidate.
        base_sequences: Loss sums (nats) of this process's sequences, float64 [sequences].
        sequences: Loss sums (nats) of the same sequences without each candidate, so that differences are paired.
        tokens: How many tokens are predicted in these sequences, int64 [sequences].
        num_tokens: How many tokens are predicted in the sequences of all processes.
    """

    base: float
    without: Mapping[Candidate, float]
    base_sequences: Tensor
    sequences: Mapping[Candidate, Tensor]
    tokens: Tensor
    num_tokens: int

    def margins(
        self,
        importance: Mapping[Candidate, float],
        slopes: Mapping[Candidate, float],
        processes: Processes,
        *,
        of_rise: bool,
    ) -> dict[Candidate, float]:
        """Standard errors of how far importances are above the lowest, over sequences that all candidates share.

        By linearisation: the difference of two importances is a ratio of sums over sequences, whose error is that of
        the sequences' residuals (Cochran, Sampling Techniques, 1977, 6.3).

        Args:
            importance: Importance of each candidate, a function of the mean token loss without it.
            slopes: The derivative of that function, by candidate.
            processes: The processes that share the sequences.
            of_rise: Whether it is a function of how much that loss is above the model's as it is.

        Returns:
            By candidate, of those where it is finite: none where there are fewer than two sequences.
        """
        best = min(importance, key=lambda candidate: (importance[candidate], candidate))
        counted = self.tokens > 0

        def scaled(candidate: Candidate) -> Tensor:
            sums, mean = self.sequences[candidate], self.without[candidate]
            if of_rise:
                sums, mean = sums - self.base_sequences, mean - self.base
            rest = sums - mean * self.tokens.to(sums)
            return slopes[candidate] * rest[counted]

        lowest = scaled(best)
        squares = torch.stack([(scaled(candidate) - lowest).square().sum() for candidate in importance])
        found = processes.sum(torch.cat([squares, counted.sum()[None].to(squares)])).tolist()
        number = found.pop()
        errors = [error_of_ratio(total, number, self.num_tokens) for total in found]
        return {gone: error for gone, error in zip(importance, errors, strict=True) if math.isfinite(error)}


def sequence_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of every sequence.

    Args:
        logits: Logits [batch, seq, vocab] of any float type; position t predicts the label at t + 1.
        labels: Labels [batch, seq], -100 where a token is not to be predicted.

    Returns:
        The sums of the token losses in nats, float64 [batch] where the device has it, and the numbers of tokens,
        int64 [batch].

    Example:
        >>> nll, tokens = sequence_losses(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]]))
        >>> round(nll.item(), 4), tokens.item()
        (0.6931, 1)
    """
    return target_losses(logits[:, :-1], labels[:, 1:]), predicts(labels).sum(dim=1)


def mean_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean token loss of a batch in nats, float32, and the number of tokens behind it; 0 where there is none."""
    nll, tokens = sequence_losses(logits, labels)
    num_tokens = tokens.sum()
    return (nll.sum() / num_tokens.clamp(min=1)).float(), num_tokens


def target_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss sums of logits [batch, positions, vocab] by what each position predicts, [batch, positions]."""
    return torch.stack([_sequence_loss(row, target) for row, target in zip(logits, targets, strict=True)])


def _sequence_loss(logits: Tensor, targets: Tensor) -> Tensor:
    parts = in_parts(logits, targets)
    sums = [F.cross_entropy(row.float(), target, ignore_index=IGNORED, reduction="sum") for row, target in parts]
    return torch.stack(sums).to(exact_dtype(logits.device)).sum()


def in_parts(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut logits [positions, vocab], and others [positions, ...] at the same places, into parts of a few positions.

    Float32 copies of all logits would be the largest tensors of a run.
    """
    number = max(1, ELEMENTS_AT_A_TIME[logits.device.type != "cpu"] // logits.shape[-1])
    return zip(*(torch.split(each, number) for each in (logits, *others)), strict=True)


def perplexity_of(nll: float) -> float:
    """The perplexity at a mean token loss in nats: its exponential, infinite where a float cannot hold it.

    Example:
        >>> round(perplexity_of(2.0), 3), perplexity_of(1e4)
        (7.389, inf)
    """
    return math.exp(nll) if nll < 700 else math.inf


def require_tokens(num_targets: Sequence[Tensor], processes: Processes) -> None:
    """Refuse batches in which no process has anything to predict."""
    if not num_targets:
        raise DataError("there are no calibration batches; give at least one dict with `input_ids` [batch, seq]")
    if not int(processes.sum(torch.stack([number.sum() for number in num_targets]).sum())):
        raise DataError("all labels of the calibration batches are masked (-100): there is nothing to score")


def require_context(model: Any, num_positions: int) -> None:
    """Refuse sequences that are longer than the model was made for."""
    context = context_length(model.config)
    if context is not None and num_positions > context:
        raise DataError(
            f"a calibration sequence has {num_positions} tokens, the model's context holds {context}; "
            "use a shorter window"
        )


def finite_mean(mean: float, name: str) -> float:
    """The mean loss without what has a name; refused where it is NaN or infinite."""
    if not math.isfinite(mean):
        raise MeasureError(
            f"the loss without {name} is {mean}: check the model's weights and dtype (float16 overflows; "
            "try bfloat16 or float32) and the calibration batches"
        )
    return mean


def hint_if_implausible(mean: float, model: Any) -> None:
    """Warn of a dense model with a mean token loss (nats) above that of knowing nothing: wrong tokenizer, or text."""
    size = model.config.get_text_config(decoder=True).vocab_size
    if mean > math.log(size):
        from lightning.fabric.utilities import rank_zero_warn

        rank_zero_warn(
            f"the dense model's perplexity is {perplexity_of(mean):,.0f}, worse than that of a guess among all "
            f"{size:,} tokens: is it the right tokenizer, and text that the model can read? What is decided by such "
            "losses is decided by chance"
        )
