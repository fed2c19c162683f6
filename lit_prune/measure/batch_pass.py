"""One batch in one round: what is missing, the states that are carried, and the blocks that must run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lit_prune.measure.journal import Key
from lit_prune.measure.portion import Portion
from lit_prune.measure.runner import Runner
from lit_prune.measure.states import States
from lit_prune.measure.work import Capacity, Work
from lit_prune.plan.prune_plan import Candidate


class BatchPass:
    """What is measured on some sequences of a batch in one round.

    Args:
        portion: The sequences.
        missing: What nobody has measured yet, and where the reply belongs.
        runner: Runs the model.
        states: Divides what is kept where the sequences are split.
        work: Counts what runs.
        capacity: What memory has room for.

    Attributes:
        parts: What it was split into, because memory has no room for all of it; see `halves`.
    """

    def __init__(
        self,
        portion: Portion,
        missing: Sequence[tuple[Candidate | None, Key]],
        *,
        runner: Runner,
        states: States,
        work: Work,
        capacity: Capacity,
    ) -> None:
        self.portion = portion
        self.missing = missing
        self.runner = runner
        self.work = work
        self.capacity = capacity
        self.parts: list[BatchPass] = []
        self._states = states
        self._length = len(portion.blocks)
        anatomy = portion.anatomy
        self._first = {
            candidate: anatomy.position(candidate.block) for candidate, _ in missing if candidate is not None
        }
        # With the loss of the model as it is comes every state; without, only those before a candidate are wanted.
        whole = any(candidate is None for candidate, _ in missing)
        self._deepest = self._length if whole else max(self._first.values(), default=0)
        self.fit()

    @property
    def leaves(self) -> list[BatchPass]:
        """The parts of its parts, down to those that are measured; itself where it has none."""
        return [leaf for part in self.parts for leaf in part.leaves] or [self]

    def fit(self) -> None:
        """Split it into two parts, with the states that are known, where memory has no room for all of it."""
        fits = self.portion.num_sequences <= self.capacity.sequences
        if self.parts or fits or not self.portion.divisible:
            return
        self.parts = [self._of(half) for half in self._states.halves(self.portion)]
        self.portion = self.portion.with_trace(self._states.of(self.portion.place))

    @property
    def num_blocks_to_do(self) -> int:
        """How many decoder blocks must run."""
        if self.parts:
            return self.parts[0].num_blocks_to_do
        wanted = [self._length if candidate is None else self._first[candidate] for candidate, _ in self.missing]
        unknown = [first for first in wanted if self.portion.trace.start(first) < first]
        states = self._deepest - self.portion.trace.start(min(unknown)) if unknown else 0
        return states + sum(self._length - first for first in self._first.values())

    def groups(self) -> Iterator[tuple[list[Candidate], list[Key]]]:
        """What is missing, as many candidates as share a pass at a time; the model as it is first, as no candidates."""
        number = self.capacity.forks if self.portion.divisible else 1
        candidates = [(candidate, key) for candidate, key in self.missing if candidate is not None]
        yield from (([], [key]) for candidate, key in self.missing if candidate is None)
        for first in range(0, len(candidates), number):
            group = candidates[first : first + number]
            yield [candidate for candidate, _ in group], [key for _, key in group]

    def measure(self, candidate: Candidate | None) -> tuple[list[float], int]:
        """Figures of the sequences without a candidate (None: of the model as it is), and the blocks that ran."""
        before = self.work.blocks
        if candidate is None:
            first = self.portion.trace.start(self._length)
            figures = self.runner.dense(self.portion, first)
        else:
            first = self._reach(candidate)
            figures = self.runner.without(self.portion, candidate, first)
        self.work.blocks += self._length - first
        self.work.heads += 1
        return figures.tolist(), self.work.blocks - before

    def measure_together(self, candidates: Sequence[Candidate]) -> list[tuple[list[float], int]]:
        """The same for several candidates, whose forks share a pass through the blocks behind the last that changes."""
        position = self.portion.anatomy.position
        meet = 1 + max(position(sublayer.block) for candidate in candidates for sublayer in candidate.sublayers)
        if len(candidates) == 1 or meet == self._length:
            return [self.measure(candidate) for candidate in candidates]
        states, costs = [], []
        for candidate in candidates:
            before = self.work.blocks
            first = self._reach(candidate)
            states.append(self.runner.fork(self.portion, candidate, first, meet))
            self.work.blocks += self._length - first
            costs.append(self.work.blocks - before)
        figures = self.runner.joined(self.portion, states, meet)
        self.work.heads += len(candidates)
        return [(found.tolist(), cost) for found, cost in zip(figures, costs, strict=True)]

    def _of(self, half: Portion) -> BatchPass:
        runner, states, work, capacity = self.runner, self._states, self.work, self.capacity
        return BatchPass(half, self.missing, runner=runner, states=states, work=work, capacity=capacity)

    def _reach(self, candidate: Candidate) -> int:
        """The first block that changes without a candidate; the state before it is known from here on."""
        first = self._first[candidate]
        if (known := self.portion.trace.start(first)) < first:
            self.runner.extend(self.portion, known, self._deepest)
            self.work.blocks += self._deepest - known
        return first
