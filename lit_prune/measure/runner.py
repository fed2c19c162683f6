"""Passes of a model over some sequences, from stored states and without some sublayers; nothing is counted here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_prune.measure.batches import labels_of, next_labels, repeated
from lit_prune.measure.losses import target_losses
from lit_prune.measure.objective import logits_of
from lit_prune.measure.portion import Portion
from lit_prune.measure.trace import Trace
from lit_prune.plan import Candidate
from lit_prune.surgery import mute

POSITIONS_AT_A_TIME = 64
"""Positions that the head runs on at a time, where memory is spared."""

Compute = Callable[[Callable[[], Tensor]], Tensor]
"""Calls what it is given, which must run the model once and return its logits; returns these."""


class Figure(Protocol):
    """What is measured of each sequence in one pass."""

    def __call__(self, compute: Compute, portion: Portion) -> Tensor:
        """Figures of the sequences, [batch], from one pass.

        Args:
            compute: Sees to the state that the pass starts from and to the sublayers that are out.
            portion: The sequences, with the states of the model as it is.
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

    With `in_parts`, the head runs on a few positions at a time, where the model's own code can leave out the others.
    """

    in_parts: bool = False

    def __call__(self, compute: Compute, portion: Portion) -> Tensor:
        """See `Figure`; float64 where the device has it."""
        objective, batch, model = portion.objective, portion.inputs, portion.objective.model
        length, num_blocks = batch["input_ids"].shape[1], len(portion.blocks)
        apart = self.in_parts and length > POSITIONS_AT_A_TIME and objective.by_position
        if not apart or "logits_to_keep" not in inspect.signature(model.forward).parameters:
            return objective.of_logits(compute(portion.logits), batch)
        targets, last = next_labels(labels_of(batch)), Trace()
        positions = torch.arange(length, device=targets.device)
        first, *others = positions.split(POSITIONS_AT_A_TIME)  # type: ignore[no-untyped-call]
        with last.recorded(portion.blocks, num_blocks - 1, num_blocks):
            nll = target_losses(compute(lambda: logits_of(model, batch, first)), targets[:, first])
        # The blocks are done; final norm and head go on from their last state.
        with last.resumed(portion.blocks, num_blocks):
            for part in others:
                nll = nll + target_losses(logits_of(model, batch, part), targets[:, part])
        return nll


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

        def compute(run: Callable[[], Tensor]) -> Tensor:
            logits: Tensor = portion.trace.extend(portion.blocks, first, len(portion.blocks), run)
            self.figure.saw_dense(portion)
            return logits

        return self.figure(compute, portion)

    def without(self, portion: Portion, candidate: Candidate, first: int) -> Tensor:
        """Figures [batch] of the model without a candidate, computed from block `first` on."""
        muted = mute(portion.objective.model, candidate.sublayers, anatomy=portion.anatomy)
        with muted, portion.trace.resumed(portion.blocks, first):
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
