"""How far the output distribution without each candidate is from that of the dense model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.anatomy import Anatomy
from lit_prune.measure.batch_pass import BatchPass, Place
from lit_prune.measure.batches import IGNORED, labels_of
from lit_prune.measure.halves import fitting
from lit_prune.measure.head import Compute
from lit_prune.measure.trace import Trace, state_part
from lit_prune.measure.what_if import WhatIf
from lit_prune.plan.prune_plan import Candidate


class Divergence(WhatIf):
    """Measures Kullback-Leibler divergence in place of losses, in nats a predicted token.

    The reference is the model as it was at this object's first measurement. Of that, the states behind the last block
    are kept for every batch ([batch, seq, hidden], the model's dtype); final norm and head make logits of them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._dense: dict[Place, Any] = {}
        self._reference: tuple[Place, Tensor] | None = None

    def figures(self, compute: Compute, batch: BatchPass) -> Tensor:
        """KL(dense, model) of each sequence, summed over the positions that predict a label, [batch]."""
        logits, labels = compute(batch.logits), labels_of(batch.inputs)
        rows = zip(self._reference_logits(batch), logits, labels[:, 1:] != IGNORED, strict=True)
        return torch.stack([kl_divergence(dense[:-1][mask], row[:-1][mask]) for dense, row, mask in rows])

    def _sweep(self, anatomy: Anatomy, ordered: Sequence[Candidate], used: Sequence[int]) -> list[Tensor]:
        # What this sweep will not run on the model as it is: later, that may have been pruned.
        gone = frozenset(anatomy.removed)
        for index in range(len(self.batches)):
            known = index not in used or self.key(gone, index) in self._journal
            if known and not any(place[0] == index for place in self._dense):
                batch = BatchPass(self, anatomy, [], index)
                fitting(batch, self._remember)
                self.num_block_evaluations += len(batch.blocks)
        return super()._sweep(anatomy, ordered, used)

    def _remember(self, batch: BatchPass) -> None:
        trace = Trace()
        trace.extend(batch.blocks, 0, len(batch.blocks), batch.logits)
        self._dense[batch.place] = trace.states[len(batch.blocks) - 1]

    def _reference_logits(self, batch: BatchPass) -> Tensor:
        # One batch is measured at a time; the logits of all would be larger than the model.
        if self._reference is None or self._reference[0] != batch.place:
            self._reference = None
            trace = Trace()
            trace.states[len(batch.blocks) - 1] = self._dense_state(batch)
            with trace.resumed(batch.blocks, len(batch.blocks)):
                self._reference = (batch.place, batch.logits())
        return self._reference[1]

    def _dense_state(self, batch: BatchPass) -> Any:
        """Behind the last block, of the sequences that are meant: kept as such, or as some of more."""
        for (index, start, stop), state in self._dense.items():
            if index == batch.index and start <= batch.rows.start and batch.rows.stop <= stop:
                return state_part(state, slice(batch.rows.start - start, batch.rows.stop - start), stop - start)
        # The first measurement of a batch is that of the model as it is, with all states.
        state = batch.trace.states[len(batch.blocks) - 1]
        self._dense[batch.place] = state
        return state


def kl_divergence(dense: Tensor, other: Tensor) -> Tensor:
    """KL(dense, other) = sum of p log(p / q), summed over positions.

    Args:
        dense: Logits of p, [positions, vocab], any float type.
        other: Logits of q, the same.

    Returns:
        Nats, a float32 scalar.

    Example:
        >>> kl_divergence(torch.zeros(2, 4), torch.zeros(2, 4)).item()
        0.0
    """
    log_p, log_q = dense.float().log_softmax(-1), other.float().log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
