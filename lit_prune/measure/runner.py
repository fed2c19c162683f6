"""Passes of a model over some sequences, from stored states and without some sublayers; nothing is counted here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lit_prune.measure.batches import repeated
from lit_prune.measure.head import Compute
from lit_prune.measure.portion import Portion
from lit_prune.measure.trace import Trace
from lit_prune.plan.prune_plan import Candidate
from lit_prune.surgery import mute


class Figure(Protocol):
    """What is measured of each sequence in one pass."""

    def __call__(self, compute: Compute, portion: Portion) -> Tensor:
        """Measure.

        Args:
            compute: Calls what it is given, which must run the model once and return its logits. It sees to the state
                that the pass starts from and to the sublayers that are out.
            portion: The sequences, with the states of the model as it is.

        Returns:
            Figures of the sequences, [batch].
        """
        ...

    def wants_dense(self, index: int) -> bool:
        """Whether a batch's states of the model as it is are wanted, even where their figures are known already."""
        return False

    def saw_dense(self, portion: Portion) -> None:
        """Look at a trace in which the model as it is has run through all blocks."""
        return


@dataclass(frozen=True)
class Loss(Figure):
    """The model's own loss: a sum over the predicted tokens of each sequence, in nats.

    Args:
        in_parts: Whether the head runs on a few positions at a time, to spare memory.
    """

    in_parts: bool = False

    def __call__(self, compute: Compute, portion: Portion) -> Tensor:
        """See `Figure`; float64 where the device has it."""
        return portion.objective.of_pass(portion.inputs, portion.blocks, compute, in_parts=self.in_parts)


class Runner:
    """Runs a model for a measure, which decides what runs, and counts it. A simulation may stand in for it.

    Args:
        figure: What is measured; the loss when None.
    """

    def __init__(self, figure: Figure | None = None) -> None:
        self.figure = figure or Loss()

    def extend(self, portion: Portion, first: int, length: int) -> None:
        """Add the states of blocks `first` to `length - 1` to the portion's trace."""
        portion.trace.extend(portion.blocks, first, length, portion.logits)
        if length == len(portion.blocks):
            self.figure.saw_dense(portion)

    def dense(self, portion: Portion, first: int) -> Tensor:
        """Figures [batch] of the model as it is, computed from block `first` on; the trace gets all states."""

        def compute(run: Any) -> Any:
            found = portion.trace.extend(portion.blocks, first, len(portion.blocks), run)
            self.figure.saw_dense(portion)
            return found

        return self.figure(compute, portion)

    def without(self, portion: Portion, candidate: Candidate, first: int) -> Tensor:
        """Figures [batch] of the model without a candidate, computed from block `first` on."""
        model = portion.objective.model
        with (
            mute(model, candidate.sublayers, anatomy=portion.anatomy),
            portion.trace.resumed(portion.blocks, first),
        ):
            return self.figure(lambda run: run(), portion)

    def fork(self, portion: Portion, candidate: Candidate, first: int, length: int) -> Any:
        """What block `length - 1` puts out without a candidate, computed from block `first` on."""
        with mute(portion.objective.model, candidate.sublayers, anatomy=portion.anatomy):
            return portion.trace.fork(portion.blocks, first, length, portion.logits)

    def joined(self, portion: Portion, states: Sequence[Any], first: int) -> list[Tensor]:
        """Figures [batch] of several forks, in one pass from block `first` on."""
        with Trace.joined(states, first - 1).resumed(portion.blocks, first):
            logits = portion.objective.logits(repeated(portion.inputs, len(states)))
        parts = logits.chunk(len(states))
        return [self.figure(lambda run, part=part: part, portion) for part in parts]  # type: ignore[misc]
