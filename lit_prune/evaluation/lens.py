"""The logit lens: what the model would say if it ended at some depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune.measure import Trace, kl_divergence, logits_of

POSITIONS_AT_A_TIME = 64


def lens_logits(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    blocks: Sequence[nn.Module],
    last_output: Any,
    states: Sequence[Tensor],
) -> Iterator[Tensor]:
    """Logits [batch, seq, vocab] of every state, by the model's own final norm and head (nostalgebraist 2020).

    The blocks pass on the state, [batch, seq, hidden], instead of computing; `last_output` is what the last of them
    returned for the same batch, in its own form.
    """
    first, *rest = last_output if isinstance(last_output, tuple) else (last_output,)
    for state in states:
        trace = Trace()
        hidden = state.to(first.device).view_as(first)
        trace.states[len(blocks) - 1] = (hidden, *rest) if isinstance(last_output, tuple) else hidden
        with trace.resumed(blocks, len(blocks)):
            yield logits_of(model, batch)


def lens_sums(final: Tensor, early: Tensor, targets: Tensor) -> Tensor:
    """How far logits at some depth are from the targets [positions] and from the final ones, summed over positions.

    Returns float32 [3]: the loss of the targets in nats, the number of positions at which both would choose the same
    token, and KL(final, early) in nats.
    """
    sums = final.new_zeros(3, dtype=torch.float32)
    for p, q, target in zip(*(torch.split(rows, POSITIONS_AT_A_TIME) for rows in (final, early, targets)), strict=True):
        same = (p.argmax(dim=-1) == q.argmax(dim=-1)).sum().float()
        loss = F.cross_entropy(q.float(), target, reduction="sum")
        sums = sums + torch.stack([loss, same, kl_divergence(p, q)])
    return sums
