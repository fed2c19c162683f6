"""How far the output distribution without each candidate is from that of the dense model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.measure.batches import labels_of, predicts
from lit_prune.measure.portion import Place, Portion
from lit_prune.measure.runner import Compute, Figure
from lit_prune.measure.trace import Trace


class Divergence(Figure):
    """The Kullback-Leibler divergence from the dense model, in nats: a sum over the predicted tokens of each sequence.

    The reference is the model as it was at the first measurement of a `WhatIf`. Of that, the states behind the last
    block are kept for every batch ([batch, seq, hidden], the model's dtype); final norm and head make logits of them.
    """

    def __init__(self) -> None:
        self._dense: dict[Place, Trace] = {}
        self._reference: tuple[Place, Tensor] | None = None

    def __call__(self, compute: Compute, portion: Portion) -> Tensor:
        """KL(dense, model) of each sequence, summed over the positions that predict a label, [batch]."""
        logits, labels = compute(portion.logits), labels_of(portion.inputs)
        rows = zip(self._reference_logits(portion), logits, predicts(labels), strict=True)
        return torch.stack([kl_divergence(dense[:-1][mask], row[:-1][mask]) for dense, row, mask in rows])

    def wants_dense(self, index: int) -> bool:
        """Where nothing of the batch is kept, as later it may have been pruned."""
        return all(place[0] != index for place in self._dense)

    def saw_dense(self, portion: Portion) -> None:
        """Keep what the last block put out, where it is the first that is seen of these sequences."""
        if self._kept(portion) is None:
            last, num = len(portion.blocks) - 1, portion.num_sequences
            kept = portion.trace.part(slice(0, num), num)
            kept.states = {last: kept.states[last]}
            self._dense[portion.place] = kept

    def _reference_logits(self, portion: Portion) -> Tensor:
        # One batch is measured at a time; the logits of all would be larger than the model.
        if self._reference is None or self._reference[0] != portion.place:
            self._reference = None
            kept = self._kept(portion)
            assert kept is not None, "the engine runs the model as it is first"
            with kept.resumed(portion.blocks, len(portion.blocks)):
                self._reference = (portion.place, portion.logits())
        return self._reference[1]

    def _kept(self, portion: Portion) -> Trace | None:
        """What is kept of these sequences, as such or as some of more; None where it is not."""
        index, start, stop = portion.place
        for (other, first, last), kept in self._dense.items():
            if index == other and first <= start and stop <= last:
                return kept.part(slice(start - first, stop - first), last - first)
        return None


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
