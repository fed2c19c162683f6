"""One batch in one round: what is missing, the states that are carried, and the blocks that must run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from lit_prune.measure.journal import Key
from lit_prune.measure.portion import Portion
from lit_prune.measure.runner import Runner
from lit_prune.measure.states import States
from lit_prune.plan import Candidate


@dataclass(eq=False)
class BatchPass:
    """What is measured on some sequences of a batch in one round.

    Attributes:
        missing: The candidates that nobody has measured yet (None: the model as it is), and where the reply belongs.
        states: What fits into memory at a time, and divides states where it does not.
        parts: The passes that it was split into, because it does not fit into memory; see `halves`.
    """

    portion: Portion
    missing: Sequence[tuple[Candidate | None, Key]]
    runner: Runner
    states: States
    parts: list[BatchPass] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.fit()

    @property
    def leaves(self) -> list[BatchPass]:
        """The parts of its parts, down to those that are measured; itself where it has none."""
        return [leaf for part in self.parts for leaf in part.leaves] or [self]

    def fit(self) -> None:
        """Split it into two parts, with the states that are known, where it does not fit into memory."""
        fits = self.portion.num_sequences <= self.states.sequences
        if self.parts or fits or not self.portion.divisible:
            return
        self.parts = [replace(self, portion=half) for half in self.states.halves(self.portion)]
        self.portion = replace(self.portion, trace=self.states.of(self.portion.place))

    @property
    def num_blocks_to_do(self) -> int:
        """How many decoder blocks must run."""
        if self.parts:
            return self.parts[0].num_blocks_to_do
        wanted = [self._length if candidate is None else self._first[candidate] for candidate, _ in self.missing]
        unknown = [first for first in wanted if self.portion.trace.start(first) < first]
        states = self._deepest - self.portion.trace.start(min(unknown)) if unknown else 0
        return states + sum(self._length - first for first in self._first.values())

    @property
    def _length(self) -> int:
        return len(self.portion.blocks)

    @cached_property
    def _first(self) -> dict[Candidate, int]:
        """The first block that changes without each candidate."""
        position = self.portion.anatomy.position
        return {candidate: position(candidate.block) for candidate, _ in self.missing if candidate is not None}

    @property
    def _deepest(self) -> int:
        """How many blocks' states are wanted: all for the model as it is, else those before the last candidate."""
        whole = any(candidate is None for candidate, _ in self.missing)
        return self._length if whole else max(self._first.values(), default=0)

    def groups(self) -> Iterator[tuple[list[Candidate], list[Key]]]:
        """What is missing, as many candidates as share a pass at a time; the model as it is first, as no candidates."""
        number = self.states.forks if self.portion.divisible else 1
        candidates = [(candidate, key) for candidate, key in self.missing if candidate is not None]
        yield from (([], [key]) for candidate, key in self.missing if candidate is None)
        for first in range(0, len(candidates), number):
            group = candidates[first : first + number]
            yield [candidate for candidate, _ in group], [key for _, key in group]

    def measure(self, candidate: Candidate | None) -> tuple[list[float], int]:
        """Figures of the sequences without a candidate (None: of the model as it is), and the blocks that ran."""
        if candidate is None:
            first = self.portion.trace.start(self._length)
            return self.runner.dense(self.portion, first).tolist(), self._length - first
        first, num_run = self._reach(candidate)
        return self.runner.without(self.portion, candidate, first).tolist(), num_run + self._length - first

    def measure_together(self, candidates: Sequence[Candidate]) -> list[tuple[list[float], int]]:
        """The same for several candidates, whose forks share a pass through the blocks behind the last that changes."""
        position = self.portion.anatomy.position
        meet = 1 + max(position(sublayer.block) for candidate in candidates for sublayer in candidate.sublayers)
        if len(candidates) == 1 or meet == self._length:
            return [self.measure(candidate) for candidate in candidates]
        states, costs = [], []
        for candidate in candidates:
            first, num_run = self._reach(candidate)
            states.append(self.runner.fork(self.portion, candidate, first, meet))
            costs.append(num_run + self._length - first)
        figures = self.runner.joined(self.portion, states, meet)
        return [(found.tolist(), cost) for found, cost in zip(figures, costs, strict=True)]

    def _reach(self, candidate: Candidate) -> tuple[int, int]:
        """The first block that changes without a candidate, and how many ran so that the state before it is known."""
        first = self._first[candidate]
        if (known := self.portion.trace.start(first)) == first:
            return first, 0
        self.runner.extend(self.portion, known, self._deepest)
        return first, self._deepest - known
