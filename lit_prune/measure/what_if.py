"""What would the loss be without this sublayer? Asked for many sublayers over one set of tokens.

Nothing is computed twice: the states before the first changed block are carried, within a round and from one to the
next, and the loss of a model that was measured as a candidate is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.anatomy import Anatomy, find_sublayers, language_model
from lit_prune.errors import LitPruneError
from lit_prune.loading.devices import exact_dtype
from lit_prune.loading.processes import Processes
from lit_prune.measure.batch_pass import BatchPass
from lit_prune.measure.batches import input_ids_of, on_device
from lit_prune.measure.halves import fitting, measured
from lit_prune.measure.journal import Journal, Key
from lit_prune.measure.losses import Losses, finite_mean, require_context, require_tokens
from lit_prune.measure.objective import objective_of
from lit_prune.measure.portion import Portion
from lit_prune.measure.runner import Figure, Loss, Runner
from lit_prune.measure.states import States
from lit_prune.measure.trace import Trace
from lit_prune.measure.weight_changes import WeightChanges
from lit_prune.plan import Candidate
from lit_prune.surgery import evaluating, mute

Progress = Callable[[int, int, str], None]


class WhatIf:
    """Measures losses of one model over fixed batches, and counts the work.

    Args:
        model: A causal language model or sequence classifier, perhaps wrapped by peft; it may be pruned and trained
            between measurements.
        batches: Dicts with `input_ids` [batch, seq], perhaps `labels` and `attention_mask`.
        processes: The processes that measure together, each its own sequences; this one alone by default.
        autocast: Makes the context in which the model runs, such as a trainer's precision context.
        progress: A function that is called with blocks done, blocks in all, and the name of what is measured.
        journal: The journal that keeps measurements, and knows those that were made before; in memory by default.
        max_state_bytes: The most memory for states that are kept from round to round; a tenth of the model's own when
            None. One batch's states are held in any case while it is measured.
        forks: How many candidates share a pass through the blocks behind all of them: more work, more logits at a time.
        offload: Whether to spare the device's memory: states are held in the CPU's, the one that a measurement starts
            from is fetched, and the head runs on a few positions at a time.
        runner: Runs the model, and says what is measured of a pass: the loss by default.
        by_full_pass: A function that takes the number of a batch and gives the loss sums [batch] of the model as it is
            set up then. Every loss has such a pass of its own: nothing is carried, and nothing kept in the journal.

    Attributes:
        objective: The loss that the model was made for.
        shares: Of a search that has a budget, gives the share of it that each candidate saves, in the budget's unit.
        states: What is kept from round to round, and what was found to fit into memory at a time.
        num_block_evaluations: Decoder blocks computed so far; one counts once for all sequences of a batch.
        num_head_evaluations: Losses computed so far, counted likewise.

    Raises:
        AnatomyError: The model is for something else than text.
        DataError: There are no batches, one has no `input_ids`, or all labels are masked.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, Any]],
        *,
        processes: Processes | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        progress: Progress | None = None,
        journal: Journal | None = None,
        max_state_bytes: int | None = None,
        forks: int = 1,
        offload: bool = False,
        runner: Runner | None = None,
        by_full_pass: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.model = language_model(model)
        self.objective = objective_of(self.model)
        self.batches = self.objective.read(batches)
        self.processes = processes or Processes()
        self._autocast = autocast
        self._progress = progress or (lambda done, total, what: None)
        self._runner = runner or Runner(Loss(in_parts=offload))
        self._by_full_pass = by_full_pass
        self.shares: Callable[[Sequence[Candidate]], Mapping[Candidate, float]] | None = None
        self._narrowed: Callable[[int], range] = range
        self._beside: dict[str, WhatIf] = {}
        self._weights = WeightChanges()
        self._journal = Journal() if journal is None else journal
        self._name = ""
        self.num_block_evaluations = self.num_head_evaluations = 0
        self.states = States(self.model, len(self.batches), self.processes, max_state_bytes, offload, forks)
        if forks < 1 or (forks > 1 and offload):
            raise LitPruneError(f"forks is a number of candidates, 1 or more, and 1 with offload; found {forks}")
        require_tokens([self.objective.num_targets(batch) for batch in self.batches], self.processes)
        require_context(self.model, self.num_positions)

    @property
    def cost(self) -> float:
        """Work so far in dense forward passes over the batches; embedding and head are not counted apart."""
        own = self.num_block_evaluations / (len(self.batches) * len(find_sublayers(self.model).blocks))
        return own + sum(other.cost for other in self._beside.values())

    @property
    def remembers(self) -> bool:
        """Whether a loss that was measured before costs nothing."""
        return self._by_full_pass is None

    @property
    def num_positions(self) -> int:
        """Length of the longest calibration sequence."""
        return max(input_ids_of(batch).shape[1] for batch in self.batches)

    @property
    def used(self) -> Sequence[Mapping[str, Any]]:
        """The batches that are measured on now: all, or some while `narrowed`."""
        return [self.batches[index] for index in self._indices]

    @property
    def _indices(self) -> range:
        return self._narrowed(len(self.batches))

    @contextmanager
    def narrowed(self, to: float | range) -> Iterator[WhatIf]:
        """Measure on the first batches alone, a share of all of them, or on those numbered, in a `with` block."""
        if isinstance(to, range):
            self._narrowed = lambda number: to
        else:
            self._narrowed = lambda number: range(max(1, math.ceil(to * number)))
        try:
            yield self
        finally:
            self._narrowed = range

    @contextmanager
    def running(self) -> Iterator[None]:
        """Evaluation mode without gradients, in the precision of the measure, in a `with` block."""
        with evaluating(self.model), self._autocast():
            yield

    def passes(self, num_dense: int = 1) -> Iterator[dict[str, Tensor]]:
        """The batches on the model's device, for work with each that counts as `num_dense` runs of the whole model."""
        num_blocks = num_dense * len(find_sublayers(self.model).blocks)
        for number, batch in enumerate(self.used):
            self._progress(number * num_blocks, len(self.used) * num_blocks, "")
            yield on_device(batch, self.model.device)
            self.num_block_evaluations += num_blocks
            self.num_head_evaluations += num_dense
        self._progress(len(self.used) * num_blocks, len(self.used) * num_blocks, "")

    def ran(self, num_blocks: int, done: int, todo: int, what: str) -> None:
        """Count blocks that ran on a batch for something else than a loss: `done` of `todo` then, for `what`."""
        self.num_block_evaluations += num_blocks
        self._progress(done, todo, what)

    def beside(
        self,
        name: str,
        figure: Callable[[], Figure] | None = None,
        batches: Callable[[], Sequence[Mapping[str, Any]]] | None = None,
    ) -> WhatIf:
        """Another measure of the same model, made once and kept; its work is part of this one's `cost`.

        Args:
            name: The name under which its measurements stand in the journal.
            figure: Makes the figure that it measures; the loss when None.
            batches: Makes its own batches, the same in every process; None takes those of this one.
        """
        if name not in self._beside:
            other = WhatIf(
                self.model,
                self.batches if batches is None else batches(),
                processes=self.processes if batches is None else None,
                autocast=self._autocast,
                progress=self._progress,
                journal=self._journal if batches is None else self._journal.unshared(),
                max_state_bytes=self.states.max_bytes,
                forks=self.states.forks,
                offload=self.states.offload,
                runner=None if figure is None else Runner(figure()),
            )
            other._name = name
            other._weights.num_corrections = self._weights.num_corrections
            self._beside[name] = other
        other = self._beside[name]
        other._narrowed = self._narrowed
        return other

    def corrected(self) -> None:
        """Say that weights were changed on purpose, the same in every process and whenever the search goes on.

        What was measured before stays in the journal for that; nothing of it is used from here on.
        """
        self._weights.correct()
        self.states.traces.clear()
        for other in self._beside.values():
            other.corrected()

    def losses(self, candidates: Sequence[Candidate]) -> Losses:
        """Measure the model as it is and without each candidate, each of which is taken out alone.

        Raises:
            MeasureError: A loss is NaN or infinite, and the message names what was out; or memory is too small.
        """
        ordered = sorted(candidates)
        anatomy = find_sublayers(self.model)
        trained = self._weights.have_changed(self.model, self.processes)
        self.states.follow(anatomy, trained=trained)
        with self.running():
            sweep = self._carried if self._by_full_pass is None else self._full_passes
            per_sequence = torch.cat(sweep(anatomy, ordered), dim=1)  # [1 + candidates, sequences]
        tokens = torch.cat([self.objective.num_targets(batch) for batch in self.used])
        totals = self.processes.sum(torch.cat([per_sequence.sum(dim=1), tokens.sum()[None].to(per_sequence)]))
        num_tokens = totals[-1]
        names = ["nothing", *(candidate.name for candidate in ordered)]
        means = [finite_mean(*found) for found in zip((totals[:-1] / num_tokens).tolist(), names, strict=True)]
        return Losses(
            base=means[0],
            without=dict(zip(ordered, means[1:], strict=True)),
            base_sequences=per_sequence[0],
            sequences=dict(zip(ordered, per_sequence[1:], strict=True)),
            tokens=tokens,
            num_tokens=int(num_tokens),
        )

    def _carried(self, anatomy: Anatomy, ordered: Sequence[Candidate]) -> list[Tensor]:
        """Loss sums of every batch, [1 + candidates, batch]; one batch's states are held, others where they fit."""
        self._see_dense(anatomy)
        keys = [self._keys(anatomy, ordered, index) for index in self._indices]
        passes = [self._pass(anatomy, index, asked) for index, asked in zip(self._indices, keys, strict=True)]
        todo, done = sum(batch.num_blocks_to_do for batch in passes), 0
        for asked, batch in zip(keys, passes, strict=True):
            for candidates, missing in batch.groups():
                self._progress(done, todo, candidates[0].name if candidates else "")
                for key, (figures, num_blocks) in zip(missing, measured(batch, candidates), strict=True):
                    self._journal.put(key, figures, num_blocks)
                    self.num_block_evaluations += num_blocks
                    self.num_head_evaluations += 1
                    done += num_blocks
            self._progress(done, todo, "")
            self.num_block_evaluations += sum(self._journal.credit(key) for _, key in asked)
            self.states.keep({leaf.portion.place: leaf.portion.trace for leaf in batch.leaves})
        # The meta device holds no numbers.
        device = torch.device("cpu") if self.model.device.type == "meta" else self.model.device
        rows = [[self._journal[key] for _, key in asked] for asked in keys]
        return [torch.tensor(figures, dtype=exact_dtype(device), device=device) for figures in rows]

    def _see_dense(self, anatomy: Anatomy) -> None:
        """Run the model as it is where a figure wants its states, and the sweep would not run it."""
        figure, length = self._runner.figure, len(anatomy.blocks)

        def run(batch: BatchPass) -> None:
            self._runner.extend(replace(batch.portion, trace=Trace()), 0, length)

        for index in range(len(self.batches)):
            runs = index in self._indices and self._keys(anatomy, [], index)[0][1] not in self._journal
            if not runs and figure.wants_dense(index):
                fitting(self._pass(anatomy, index, []), run)
                self.num_block_evaluations += length

    def _keys(self, anatomy: Anatomy, ordered: Sequence[Candidate], index: int) -> list[tuple[Candidate | None, Key]]:
        """Where the journal has what is asked of a batch: of the model as it is (None), and without each candidate."""
        corrections, gone = self._weights.num_corrections, frozenset(anatomy.removed)
        marks = (self._name, f"{corrections}c" if corrections else "", self._weights.digest)
        place = "/".join([*filter(None, marks), str(index)]) if any(marks) else index
        return [
            (None, (gone, place)),
            *((candidate, (gone.union(candidate.sublayers), place)) for candidate in ordered),
        ]

    def _pass(self, anatomy: Anatomy, index: int, asked: Sequence[tuple[Candidate | None, Key]]) -> BatchPass:
        place = (index, 0, len(input_ids_of(self.batches[index])))
        portion = Portion(self.objective, anatomy, self.batches[index], place, self.states.of(place))
        missing = [(candidate, key) for candidate, key in asked if key not in self._journal]
        return BatchPass(portion, missing, self._runner, self.states)

    def _full_passes(self, anatomy: Anatomy, ordered: Sequence[Candidate]) -> list[Tensor]:
        """The same, by one full pass for each loss."""
        assert self._by_full_pass is not None
        asked = [("", ()), *((candidate.name, candidate.sublayers) for candidate in ordered)]
        rows = []
        for place, index in enumerate(self._indices):
            sums = []
            for number, (name, sublayers) in enumerate(asked):
                self._progress(place * len(asked) + number, len(self.used) * len(asked), name)
                with mute(self.model, sublayers, anatomy=anatomy):
                    sums.append(self._by_full_pass(index))
                self.num_block_evaluations += len(anatomy.blocks)
                self.num_head_evaluations += 1
            rows.append(torch.stack(sums))
        return rows
