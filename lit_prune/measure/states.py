"""What fits into memory: states that are kept from round to round, and how much is measured at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from lit_prune.anatomy import Anatomy
from lit_prune.loading.devices import bytes_held
from lit_prune.loading.processes import Processes
from lit_prune.measure.portion import Place, Portion
from lit_prune.measure.trace import Trace
from lit_prune.surgery import is_sharded

STATES_SHARE = 0.1
"""What kept states may take unless the caller says otherwise, as a share of the model's own memory."""


@dataclass
class States:
    """Traces of the model as it is, by their sequences; they take a tenth of its memory, or `max_bytes`.

    Attributes:
        forks: Candidates that share one pass through the blocks behind all of them.
        sequences: Sequences of a batch that are measured at a time; infinite until a batch did not fit.
    """

    model: nn.Module
    num_batches: int
    processes: Processes
    max_bytes: int | None
    offload: bool
    forks: int
    sequences: float = math.inf
    anatomy: Anatomy | None = None
    traces: dict[Place, Trace] = field(default_factory=dict)

    def of(self, place: Place) -> Trace:
        """What is kept of some sequences, or an empty trace."""
        return self.traces.get(place) or Trace(offload=self.offload, to_the_end=is_sharded(self.model))

    def follow(self, anatomy: Anatomy, *, trained: bool) -> None:
        """Forget what comes from the first block that has changed since the last call, and from those behind it.

        All are forgotten where the model was trained.
        """
        before, self.anatomy = self.anatomy, anatomy
        if trained or before is None or anatomy.blocks != before.blocks:
            self.traces.clear()
            return
        changed = {anatomy.position(sublayer.block) for sublayer in set(anatomy.removed) ^ set(before.removed)}
        for trace in self.traces.values():
            trace.cut(min(changed, default=len(anatomy.blocks)))

    def halves(self, portion: Portion) -> list[Portion]:
        """Two portions of one that is too large, with the states that are known of it."""
        (index, start, _), number = portion.place, portion.num_sequences
        self.traces.pop(portion.place, None)
        half, found = -(-number // 2), []
        for rows in (slice(0, half), slice(half, number)):
            place = (index, start + rows.start, start + rows.stop)
            if portion.trace.states:
                self.traces[place] = portion.trace.part(rows, number)
            found.append(replace(portion, place=place, trace=self.of(place)))
        return found

    def keep(self, traces: Mapping[Place, Trace]) -> None:
        """Keep the traces of all sequences of a batch, so many states of them as fit into its share of the memory."""
        limit = int(STATES_SHARE * bytes_held(self.model)) if self.max_bytes is None else self.max_bytes
        for place, trace in traces.items():
            held = trace.num_bytes
            if is_sharded(self.model):
                # A pass is one of all processes, whose shares of a batch differ by a sequence.
                total, number = self.processes.sum(torch.tensor([held, 1])).tolist()
                held = int(total // number)
            trace.thin(limit // (self.num_batches * len(traces)), held)
            self.traces[place] = trace
