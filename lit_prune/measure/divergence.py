"""How far the output distribution without each candidate is from that of the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.measure.batches import labels_of, predicts
from lit_prune.measure.losses import in_parts
from lit_prune.measure.portion import Place, Portion
from lit_prune.measure.runner import Compute, Figure
from lit_prune.measure.trace import Trace

Distance = Callable[[Tensor, Tensor], Tensor]
"""Takes logits of the dense model and of another, [positions, vocab]; returns a sum over positions, float32."""


class Divergence(Figure):
    """How far the model is from the dense one: a sum over the predicted tokens of each sequence.

    The reference is the model as it was at the first measurement of a `WhatIf`. Of that, the states behind the last
    block are kept for every batch ([batch, seq, hidden], the model's dtype); final norm and head make logits of them.

    Args:
        distance: Compares the two, some positions at a time; the Kullback-Leibler divergence from the dense model, in
            nats, when None.
    """

    def __init__(self, distance: Distance | None = None) -> None:
        self._distance = distance or kl_divergence
        self._dense: dict[Place, Trace] = {}
        self._reference: tuple[Place, Tensor] | None = None

    def __call__(self, compute: Compute, portion: Portion) -> Tensor:
        """The distance of each sequence, summed over the positions that predict a label, [batch]."""
        logits, labels = compute(portion.logits), labels_of(portion.inputs)
        rows = zip(self._reference_logits(portion), logits, predicts(labels), strict=True)
        return torch.stack([self._of_sequence(dense[:-1][mask], row[:-1][mask]) for dense, row, mask in rows])

    def _of_sequence(self, dense: Tensor, other: Tensor) -> Tensor:
        return torch.stack([self._distance(theirs, own) for own, theirs in in_parts(other, dense)]).sum()

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


def disagreement(dense: Tensor, other: Tensor) -> Tensor:
    """The number of positions at which the likeliest token is another one: greedy text would not accept a draft's.

    Takes and gives what `kl_divergence` does.

    Example:
        >>> disagreement(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 3.0]])).item()
        1.0
    """
    return (dense.argmax(-1) != other.argmax(-1)).sum().float()


def total_variation(dense: Tensor, other: Tensor) -> Tensor:
    """1 - sum of min(p, q), summed over positions: how often a token that is drawn from q would not be accepted.

    Takes and gives what `kl_divergence` does. Leviathan et al. 2023, arXiv 2211.17192, theorem 3.5.

    Example:
        >>> total_variation(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -1e9]])).item()
        0.5
    """
    p, q = dense.float().softmax(-1), other.float().softmax(-1)
    return (p - q).abs().sum() / 2


AGREEMENTS: Mapping[str, Distance] = {"greedy": disagreement, "sampling": total_variation}
"""How often a dense model refuses a token of a draft, by how the text is written."""
