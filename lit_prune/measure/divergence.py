"""How far the output distribution without each candidate is from that of the dense model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.anatomy import Anatomy, find_sublayers
from lit_prune.measure.batch_pass import BatchPass
from lit_prune.measure.head import Compute, logits_of
from lit_prune.measure.losses import IGNORED, labels_of, on_device
from lit_prune.measure.trace import Trace
from lit_prune.measure.what_if import WhatIf
from lit_prune.plan import Candidate


class Divergence(WhatIf):
    """Measures Kullback-Leibler divergence in place of losses, in nats a predicted token.

    The reference is the model as it was at this object's first measurement. Of that, the states behind the last block
    are kept for every batch ([batch, seq, hidden], the model's dtype); final norm and head make logits of them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._dense: dict[int, Any] = {}
        self._reference: tuple[int, Tensor] | None = None

    def figures(self, compute: Compute, batch: BatchPass) -> Tensor:
        """KL(dense, model) of each sequence, summed over the positions that predict a label, [batch]."""
        logits, labels = compute(batch.logits), labels_of(batch.inputs)
        if batch.index not in self._dense:
            # The first measurement of a batch is that of the model as it is, with all states.
            self._dense[batch.index] = batch.trace.states[len(batch.anatomy.blocks) - 1]
        rows = zip(self._reference_logits(batch.index), logits, labels[:, 1:] != IGNORED, strict=True)
        return torch.stack([kl_divergence(dense[:-1][mask], row[:-1][mask]) for dense, row, mask in rows])

    def _sweep(self, anatomy: Anatomy, ordered: Sequence[Candidate], used: Sequence[int]) -> list[Tensor]:
        # What this sweep will not run on the model as it is: later, that may have been pruned.
        gone = frozenset(anatomy.removed)
        for index in range(len(self.batches)):
            known = index not in used or self.key(gone, index) in self._journal
            if index not in self._dense and known:
                self._remember(anatomy, index)
        return super()._sweep(anatomy, ordered, used)

    def _remember(self, anatomy: Anatomy, index: int) -> None:
        trace, blocks = Trace(), list(self.model.get_submodule(anatomy.blocks_path))
        trace.extend(blocks, 0, len(blocks), lambda: self._run(index))
        self.num_block_evaluations += len(blocks)
        self._dense[index] = trace.states[len(blocks) - 1]

    def _reference_logits(self, index: int) -> Tensor:
        # One batch is measured at a time; the logits of all would be larger than the model.
        if self._reference is None or self._reference[0] != index:
            blocks = list(self.model.get_submodule(find_sublayers(self.model).blocks_path))
            trace = Trace()
            trace.states[len(blocks) - 1] = self._dense[index]
            with trace.resumed(blocks, len(blocks)):
                self._reference = (index, self._run(index))
        return self._reference[1]

    def _run(self, index: int) -> Tensor:
        return logits_of(self.model, on_device(self.batches[index], self.model.device))


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
