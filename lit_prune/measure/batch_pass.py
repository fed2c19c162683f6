"""One batch in one round: what is missing, the states that are carried, and the blocks that must run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_prune.anatomy import Anatomy
from lit_prune.measure.batches import input_ids_of, is_divisible, on_device, repeated, rows_of
from lit_prune.measure.journal import Key
from lit_prune.measure.trace import Trace
from lit_prune.plan.prune_plan import Candidate, SublayerId
from lit_prune.surgery import is_sharded, mute

if TYPE_CHECKING:
    from lit_prune.measure.what_if import WhatIf

Wanted = tuple[Candidate | None, frozenset[SublayerId]]
"""A candidate, or nothing, and all that is out of the model without it."""

Place = tuple[int, int, int]
"""A batch's index, the first of its sequences that are meant, and the one behind the last."""


class BatchPass:
    """What is measured on one batch in one round.

    Args:
        owner: Whose model, batches and counts these are.
        anatomy: Of the model as it is.
        wanted: What the round asks for.
        index: Of the batch.
        rows: Its sequences that are meant; all when None.

    Attributes:
        place: Index, first sequence and the one behind the last.
        parts: That it was split into, because memory has no room for all of it; see `halves`.
        missing: What nobody has measured yet, by the first block that changes.
        trace: States of the model as it is.
        blocks: Of the model.
    """

    def __init__(
        self, owner: WhatIf, anatomy: Anatomy, wanted: Sequence[Wanted], index: int, rows: slice | None = None
    ) -> None:
        self.owner = owner
        self.anatomy = anatomy
        self.wanted = wanted
        self.index = index
        self.rows = rows or slice(0, len(input_ids_of(owner.batches[index])))
        self.place: Place = (index, self.rows.start, self.rows.stop)
        self.parts: list[BatchPass] = []
        keys = [(each, owner.key(gone, index)) for each, gone in wanted]
        self.missing = [(each, key) for each, key in keys if key not in owner._journal]
        self.trace = owner._traces.get(self.place) or owner.new_trace()
        self.blocks = list(owner.model.get_submodule(anatomy.blocks_path))
        self._first = {each: anatomy.position(each.block) for each, _ in self.missing if each is not None}
        # With the loss of the model as it is comes every state; without, only those before a candidate are wanted.
        whole = any(each is None for each, _ in self.missing)
        self._deepest = len(self.blocks) if whole else max(self._first.values(), default=0)
        self.fit()

    @property
    def num_sequences(self) -> int:
        """That are meant."""
        return int(self.rows.stop - self.rows.start)

    @property
    def divisible(self) -> bool:
        """Whether its sequences can be told apart in all that the model is given."""
        return is_divisible(self.owner.batches[self.index])

    @property
    def leaves(self) -> list[BatchPass]:
        """The parts of its parts, down to those that are measured; itself where it has none."""
        return [leaf for each in self.parts for leaf in each.leaves] or [self]

    def fit(self) -> None:
        """Split it into two parts, with the states that are known, where memory has no room for all of it."""
        if self.parts or self.num_sequences <= self.owner.most_sequences or not self.divisible:
            return
        start, middle, stop = self.rows.start, self.rows.start + -(-self.num_sequences // 2), self.rows.stop
        self.owner._traces.pop(self.place, None)
        for rows in (slice(start, middle), slice(middle, stop)):
            if self.trace.states:
                inside = slice(rows.start - start, rows.stop - start)
                self.owner._traces[self.index, rows.start, rows.stop] = self.trace.part(inside, self.num_sequences)
            self.parts.append(BatchPass(self.owner, self.anatomy, self.wanted, self.index, rows))
        self.trace = Trace()
        self.__dict__.pop("inputs", None)

    @property
    def num_blocks_to_do(self) -> int:
        """Decoder blocks that must run."""
        if self.parts:
            return self.parts[0].num_blocks_to_do
        wanted = [len(self.blocks) if each is None else self._first[each] for each, _ in self.missing]
        unknown = [each for each in wanted if self.trace.start(each) < each]
        states = self._deepest - self.trace.start(min(unknown)) if unknown else 0
        return states + sum(len(self.blocks) - first for first in self._first.values())

    def groups(self, number: int) -> Iterator[tuple[list[Candidate], list[Key]]]:
        """What is missing, `number` candidates at a time; the model as it is alone, as no candidates."""
        number = number if self.divisible else 1
        candidates = [(each, key) for each, key in self.missing if each is not None]
        yield from (([], [key]) for each, key in self.missing if each is None)
        for first in range(0, len(candidates), number):
            group = candidates[first : first + number]
            yield [each for each, _ in group], [key for _, key in group]

    def measure(self, candidate: Candidate | None) -> tuple[list[float], int]:
        """Figures of the sequences without a candidate (None: of the model as it is), and the blocks that ran."""
        before = self.owner.num_block_evaluations
        length = len(self.blocks)
        first = length if candidate is None else self._first[candidate]
        known = self.trace.start(first)
        if candidate is None:
            self.owner.num_block_evaluations += length - known
            figures = self.owner.figures(lambda run: self.trace.extend(self.blocks, known, length, run), self)
        else:
            if known < first:
                self._extend(known, self._deepest)
            with (
                mute(self.owner.model, candidate.sublayers, anatomy=self.anatomy),
                self.trace.resumed(self.blocks, first),
            ):
                figures = self.owner.figures(lambda run: run(), self)
            self.owner.num_block_evaluations += length - first
        self.owner.num_head_evaluations += 1
        return figures.tolist(), self.owner.num_block_evaluations - before

    def measure_together(self, candidates: Sequence[Candidate]) -> list[tuple[list[float], int]]:
        """The same of several candidates, whose forks share a pass through the blocks behind the last that changes."""
        meet = 1 + max(self.anatomy.position(each.block) for one in candidates for each in one.sublayers)
        if len(candidates) == 1 or meet == len(self.blocks):
            return [self.measure(each) for each in candidates]
        states, costs = [], []
        for each in candidates:
            before, first = self.owner.num_block_evaluations, self._first[each]
            if (known := self.trace.start(first)) < first:
                self._extend(known, self._deepest)
            with mute(self.owner.model, each.sublayers, anatomy=self.anatomy):
                states.append(self.trace.fork(self.blocks, first, meet, self.logits))
            self.owner.num_block_evaluations += len(self.blocks) - first
            costs.append(self.owner.num_block_evaluations - before)
        with Trace.joined(states, meet - 1).resumed(self.blocks, meet):
            logits = self.owner.objective.logits(repeated(self.inputs, len(candidates)))
        self.owner.num_head_evaluations += len(candidates)
        parts = logits.chunk(len(candidates))
        figures = [self.owner.figures(lambda run, part=part: part, self) for part in parts]  # type: ignore[misc]
        return [(each.tolist(), cost) for each, cost in zip(figures, costs, strict=True)]

    def thinned(self, num_bytes: int) -> Trace:
        """The states, so many of them as fit into a memory."""
        held = self.trace.num_bytes
        if is_sharded(self.owner.model):
            # A pass is one of all processes, whose shares of a batch differ by a sequence.
            total, number = self.owner.summed(torch.tensor([held, 1])).tolist()
            held = total // number
        self.trace.thin(num_bytes, held)
        return self.trace

    def logits(self) -> Tensor:
        """Logits of the model as it is set up now."""
        return self.owner.objective.logits(self.inputs)

    def _extend(self, first: int, length: int) -> None:
        self.owner.num_block_evaluations += length - first
        self.trace.extend(self.blocks, first, length, self.logits)

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The batch's sequences on the model's device."""
        return on_device(rows_of(self.owner.batches[self.index], self.rows), self.owner.model.device)
