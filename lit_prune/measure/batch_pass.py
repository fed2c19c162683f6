"""One batch in one round: what is missing, the states that are carried, and the blocks that must run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lit_prune.anatomy import Anatomy
from lit_prune.measure.losses import labels_of, model_inputs, on_device
from lit_prune.measure.trace import Trace
from lit_prune.plan import Candidate, SublayerId
from lit_prune.surgery import mute

if TYPE_CHECKING:
    from lit_prune.measure.what_if import WhatIf

Wanted = tuple[Candidate | None, frozenset[SublayerId]]
"""A candidate, or nothing, and all that is out of the model without it."""


class BatchPass:
    """What is measured on one batch in one round.

    Args:
        owner: Whose model, batches and counts these are.
        anatomy: Of the model as it is.
        wanted: What the round asks for.
        index: Of the batch.

    Attributes:
        missing: What nobody has measured yet, by the first block that changes.
        trace: States of the model as it is.
    """

    def __init__(self, owner: WhatIf, anatomy: Anatomy, wanted: Sequence[Wanted], index: int) -> None:
        self.owner = owner
        self.anatomy = anatomy
        self.index = index
        keys = [(each, owner.key(gone, index)) for each, gone in wanted]
        self.missing = [(each, key) for each, key in keys if key not in owner._journal]
        self.trace = owner._traces.get(index) or Trace(offload=owner._offload)
        self._blocks = list(owner.model.get_submodule(anatomy.blocks_path))
        self._first = {each: anatomy.position(each.block) for each, _ in self.missing if each is not None}
        # With the loss of the model as it is comes every state; without, only those before a candidate are wanted.
        whole = any(each is None for each, _ in self.missing)
        self._deepest = len(self._blocks) if whole else max(self._first.values(), default=0)

    @property
    def num_blocks_to_do(self) -> int:
        """Decoder blocks that must run."""
        wanted = [len(self._blocks) if each is None else self._first[each] for each, _ in self.missing]
        unknown = [each for each in wanted if self.trace.start(each) < each]
        states = self._deepest - self.trace.start(min(unknown)) if unknown else 0
        return states + sum(len(self._blocks) - first for first in self._first.values())

    def measure(self, candidate: Candidate | None) -> tuple[list[float], int]:
        """Figures of the sequences without a candidate (None: of the model as it is), and the blocks that ran."""
        before = self.owner.num_block_evaluations
        first = len(self._blocks) if candidate is None else self._first[candidate]
        known = self.trace.start(first)
        if candidate is None or known < first:
            logits = self._extend(known, self._deepest)
        if candidate is not None:
            with (
                mute(self.owner.model, candidate.sublayers, anatomy=self.anatomy),
                self.trace.resumed(self._blocks, first),
            ):
                logits = self._logits()
            self.owner.num_block_evaluations += len(self._blocks) - first
        self.owner.num_head_evaluations += 1
        figures = self.owner.figures(logits, labels_of(self._batch), self)
        return figures.tolist(), self.owner.num_block_evaluations - before

    def _extend(self, first: int, length: int) -> Any:
        self.owner.num_block_evaluations += length - first
        return self.trace.extend(self._blocks, first, length, self._logits)

    @cached_property
    def _batch(self) -> dict[str, Tensor]:
        return on_device(self.owner.batches[self.index], self.owner.model.device)

    def _logits(self) -> Tensor:
        logits: Tensor = self.owner.model(**model_inputs(self._batch), use_cache=False).logits
        return logits
