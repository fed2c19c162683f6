"""Signs of damage that need no judge: repetition, answers cut short, and how far a model is from the dense one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lit_prune.evaluation.answers import Turn
from lit_prune.healing import repetition
from lit_prune.surgery import evaluating

SHORT = 0.25
"""An answer of less than this share of the dense model's length is cut short."""
NUM_LIKELY = 256
"""Tokens of the dense model's distribution that are kept one by one."""


@dataclass(frozen=True)
class Signs:
    """What the answers of one model show.

    Attributes:
        tokens: Mean length of an answer, in tokens.
        ended: Share of the answers that ended by themselves, before the limit.
        repetition: Mean share of an answer's 4-grams of tokens that stand in it earlier already.
        cut_short: Share of the answers that ended with less than a quarter of the dense model's tokens; None for the
            dense model itself, as what follows.
        agreement: Share of the positions in the dense model's answers where the likeliest next token is the same.
        divergence: KL(dense, model) in nats at each position of the dense model's answers, averaged over those that
            are so long; over its 256 likeliest tokens and all others as one, which is a lower bound.
    """

    tokens: float
    ended: float
    repetition: float
    cut_short: float | None = None
    agreement: float | None = None
    divergence: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Reference:
    """What a dense model expects at each position of one of its answers.

    Its likeliest tokens, LongTensor [positions, tokens], and their log-probabilities, float32 of the same shape.
    """

    turn: Turn
    likely: Tensor
    log_probs: Tensor


def references(model: PreTrainedModel, answers: Sequence[Sequence[Turn]]) -> list[Reference]:
    """Read the dense model's own answers again, without the empty ones, and keep what it expects."""
    found = []
    with evaluating(model):
        for turn in (turn for turns in answers for turn in turns if turn.tokens):
            log_probs, likely = _log_probs(model, turn).topk(min(NUM_LIKELY, model.config.get_text_config().vocab_size))
            found.append(Reference(turn, likely.cpu(), log_probs.cpu()))
    return found


def signs(
    model: PreTrainedModel,
    answers: Sequence[Sequence[Turn]],
    dense: Sequence[Sequence[Turn]] | None = None,
    expected: Sequence[Reference] = (),
) -> Signs:
    """Look for signs of damage in a model's answers.

    Args:
        model: The model that gave the answers.
        answers: Its answers, to the same questions as the dense model's.
        dense: The dense model's answers; None where there is no such model, or this is it.
        expected: What the dense model expects in them.
    """
    turns = [turn for turns in answers for turn in turns]
    own = Signs(
        tokens=statistics.fmean(len(turn.tokens) for turn in turns),
        ended=statistics.fmean(turn.ended for turn in turns),
        repetition=statistics.fmean(repetition(turn.tokens) for turn in turns),
    )
    if dense is None:
        return own
    pairs = zip(turns, (turn for turns in dense for turn in turns), strict=True)
    short = [turn.ended and len(turn.tokens) < SHORT * len(other.tokens) for turn, other in pairs]
    agreement, divergence = _distance(model, expected) if expected else (None, None)
    return replace(own, cut_short=statistics.fmean(short), agreement=agreement, divergence=divergence)


def _distance(model: PreTrainedModel, expected: Sequence[Reference]) -> tuple[float, tuple[float, ...]]:
    same, total = 0, 0
    divergences: list[Tensor] = []
    with evaluating(model):
        for reference in expected:
            found = _log_probs(model, reference.turn).cpu()
            same += int((found.argmax(dim=-1) == reference.likely[:, 0]).sum())
            total += len(found)
            divergences.append(binned_divergence(reference.log_probs, found.gather(1, reference.likely)))
    longest = max(map(len, divergences))
    columns = [[float(row[place]) for row in divergences if place < len(row)] for place in range(longest)]
    return same / total, tuple(statistics.fmean(column) for column in columns)


def binned_divergence(expected: Tensor, found: Tensor) -> Tensor:
    """KL divergence [positions] in nats over some tokens and all others as one: at most that over all tokens.

    Takes log-probabilities [positions, tokens] of the same tokens by two models.
    """
    p, q = _with_rest(expected), _with_rest(found)
    return (p.exp() * (p - q)).sum(dim=-1).clamp(min=0)


def _with_rest(log_probs: Tensor) -> Tensor:
    rest = 1 - log_probs.exp().sum(dim=-1, keepdim=True)
    return torch.cat([log_probs, rest.clamp(min=torch.finfo(torch.float32).tiny).log()], dim=-1)


def _log_probs(model: PreTrainedModel, turn: Turn) -> Tensor:
    """Log-probabilities of every token at each position of an answer, float32 [positions, vocab]."""
    ids = torch.tensor([[*turn.context, *turn.tokens]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(turn.context) - 1 : -1]
    return F.log_softmax(logits.float(), dim=-1)
