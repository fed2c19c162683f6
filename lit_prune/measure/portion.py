"""Some sequences of one batch: what a pass over them is given, and what the blocks put out for them before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from lit_prune.anatomy import Anatomy
from lit_prune.measure.batches import is_divisible, on_device, rows_of
from lit_prune.measure.objective import TokenLosses
from lit_prune.measure.trace import Trace

Place = tuple[int, int, int]
"""The number of a batch, the first of its sequences that are meant, and the one behind the last."""


@dataclass
class Portion:
    """All sequences of a batch, or as many as fit into memory.

    Attributes:
        objective: The loss of the model, which holds the model.
        anatomy: The sublayers of the model as it is in this round.
        batch: The whole batch, as `objective.read` gives it.
        place: Which sequences of which batch these are.
        trace: What blocks put out for them in the model as it is.
    """

    objective: TokenLosses
    anatomy: Anatomy
    batch: Mapping[str, Any]
    place: Place
    trace: Trace

    @property
    def num_sequences(self) -> int:
        """How many sequences these are."""
        return self.place[2] - self.place[1]

    @property
    def divisible(self) -> bool:
        """Whether sequences can be told apart in all that the model is given."""
        return is_divisible(self.batch)

    @cached_property
    def blocks(self) -> Sequence[nn.Module]:
        """The decoder blocks of the model."""
        return list(self.anatomy.block_list(self.objective.model))

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the model is given of these sequences and their labels, on the model's device."""
        return on_device(rows_of(self.batch, slice(*self.place[1:])), self.objective.model.device)

    def logits(self) -> Tensor:
        """The logits of the model as it is set up now: [batch, seq, vocab], or [batch, num_labels] of a classifier."""
        return self.objective.logits(self.inputs)
